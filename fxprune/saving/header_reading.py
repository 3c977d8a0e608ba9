"""`fxprune.json` read: every field is checked before anything is built from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from fxprune.errors import PlanError, SaveError
from fxprune.graph.blocks import inside
from fxprune.graph.groups import Held
from fxprune.planning.norms import NormChange
from fxprune.planning.plan import Plan
from fxprune.reporting.anatomy import Anatomy, Choice, Layer, Shape
from fxprune.reporting.report import Cause
from fxprune.reporting.speed import Timing
from fxprune.rewriting.attributes import Change
from fxprune.rewriting.skip import from_data, key_of
from fxprune.rewriting.unread import Stale
from fxprune.saving import checksums
from fxprune.saving.files import named, read_bytes, variants
from fxprune.saving.header import (
    DTYPES,
    FORMAT,
    HEADER,
    Header,
    Saved,
    SavedPipeline,
    SkipInfo,
    TensorInfo,
    Told,
    is_identifier,
)
from fxprune.verification import Check

T = TypeVar("T")


class _Bad(ValueError):
    """A field is not what it must be; restated by `read` with the file's name."""


def read(directory: Path, variant: str | None = None) -> Header:
    """What the `fxprune.json` of a folder says.  Builds nothing, runs nothing.

    Raises:
        SaveError: where there is none, or it is damaged, or of a newer format.
    """
    path = directory / named(HEADER, variant)
    if not directory.is_dir():
        raise SaveError(f"there is no folder {directory}")
    if not os.path.lexists(path):
        there = [f"variant={v!r}" for v in variants(directory, HEADER)]
        other = f"; load it with {' or '.join(there[:4])}" if there else ""
        raise SaveError(f"{directory} is not a folder that fxprune.save() wrote: it has no {path.name}{other}")
    try:
        return _header(json.loads(read_bytes(path).decode("utf-8")))
    except (_Bad, PlanError) as e:
        raise SaveError(f"{path} is damaged or foreign: {e}") from e
    except (ValueError, OverflowError, RecursionError, OSError) as e:
        raise SaveError(f"{path} cannot be read: {type(e).__name__}: {e}") from e


def _header(data: Any) -> Header:
    version = _get(data, "format", int)
    if version > FORMAT:
        raise _Bad(f"it has format {version}, this fxprune reads up to {FORMAT}; update fxprune")
    kind = _get(data, "kind", str)
    if kind not in ("model", "pipeline"):
        raise _Bad(f"kind is {kind!r}, not model or pipeline")
    return _saved(data) if kind == "model" else _saved_pipeline(data)


def _saved(data: dict[str, Any]) -> Saved:
    cls = _get(data, "class", dict)
    forward = _get(data, "forward", str)
    if forward != "module":
        raise _Bad(f"forward is {forward!r}; this fxprune reads models that keep their own forward only")
    saved = Saved(
        module=_get(cls, "module", str),
        name=_get(cls, "name", str),
        tensors=_table(data, "tensors", _tensor),
        tied=_table(data, "tied", _text),
        adapter=_maybe(data, "adapter", str),
        config=_maybe(data, "config", dict),
        plan=None if (plan := _maybe(data, "plan", dict)) is None else _plan(plan, "plan"),
        earlier=_row(data, "earlier", _plan),
        changes=_row(data, "changes", _change),
        skips=_table(data, "skips", _skip) if "skips" in data else {},
        forward=forward,
        checks=_row(data, "checks", _check),
        held=_row(data, "held", _cause),
        seed=_maybe(data, "seed", int),
        told=_told(_get(data, "told", dict)) if "told" in data else Told(),
        versions=_table(data, "versions", _text),
        metrics=_maybe(data, "metrics", dict),
        checksums=_table(data, checksums.ENTRY, _text) if checksums.ENTRY in data else {},
        anatomy=_anatomy(made, "anatomy") if (made := data.get("anatomy")) is not None else None,
        timing=_timing(timed) if (timed := data.get("timing")) is not None else None,
    )
    _require_own_files(saved.checksums)
    for alias, first in saved.tied.items():
        if first not in saved.tensors or alias in saved.tensors:
            raise _Bad(f"{alias!r} is tied to {first!r}, which is no tensor of its own")
    for path in saved.skips:
        if any(inside(path, other) for other in saved.skips if other != path):
            raise _Bad(f"{path!r} is said to be taken out twice")
    if saved.plan is None and (saved.changes or saved.earlier):
        raise _Bad("it has changed attributes but no plan")
    if saved.plan is None and saved.skips:
        raise _Bad("modules are taken out, but it has no plan")
    for made in (saved.plan, *saved.earlier):
        if made is not None and made.model != saved.name.rpartition(".")[2]:
            raise _Bad(f"the plan is of a {made.model}, the model is a {saved.name}")
    return saved


def _saved_pipeline(data: dict[str, Any]) -> SavedPipeline:
    cls = _get(data, "class", dict)
    saved = SavedPipeline(
        module=_get(cls, "module", str),
        name=_get(cls, "name", str),
        components=_row(data, "components", _text),
        dtypes=_table(data, "dtypes", _dtype),
        files=_row(data, "files", _text),
        versions=_table(data, "versions", _text),
        metrics=_maybe(data, "metrics", dict),
        checksums=_table(data, checksums.ENTRY, _text) if checksums.ENTRY in data else {},
    )
    _require_own_files(saved.checksums)
    for name in (*saved.components, *saved.dtypes):
        if not is_identifier(name):
            raise _Bad(f"{name!r} is no name of a component")
    return saved


def _require_own_files(names: Iterable[str]) -> None:
    for name in names:
        if not name or not set(name.split("/")).isdisjoint(("", ".", "..")) or "\\" in name or "\0" in name:
            raise _Bad(f"{name!r:.80} is no name of a file in it")


def _is(value: Any, kind: type[T]) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _get(data: Any, key: str, kind: type[T]) -> T:
    if not isinstance(data, dict) or key not in data:
        raise _Bad(f"{key} is missing")
    value = data[key]
    if not _is(value, kind):
        raise _Bad(f"{key} is a {type(value).__name__}, not a {kind.__name__}")
    assert isinstance(value, kind)
    return value


def _maybe(data: dict[str, Any], key: str, kind: type[T]) -> T | None:
    return None if key in data and data[key] is None else _get(data, key, kind)


def _table(data: dict[str, Any], key: str, item: Callable[[Any, str], T]) -> dict[str, T]:
    return {str(k): item(v, f"{key}[{k!r}]") for k, v in _get(data, key, dict).items()}


def _row(data: dict[str, Any], key: str, item: Callable[[Any, str], T]) -> tuple[T, ...]:
    return tuple(item(v, f"{key}[{i}]") for i, v in enumerate(_get(data, key, list)))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Bad(f"{where} is a {type(value).__name__}, not a str")
    return value


def _number(value: Any, where: str) -> float:
    if not _is(value, int) and not _is(value, float):
        raise _Bad(f"{where} is a {type(value).__name__}, not a number")
    return float(value)


def _size(value: Any, where: str) -> int:
    if not _is(value, int) or not 0 <= value < 2**63:
        raise _Bad(f"{where} is {value!r:.60}, not an integer of at least 0 (and of 63 bits)")
    return int(value)


def _dtype(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in DTYPES:
        raise _Bad(f"{where} is {value!r:.60}, which is no dtype; one of {', '.join(DTYPES)}")
    return value


def _tensor(value: Any, where: str) -> TensorInfo:
    kind = _get(value, "kind", str)
    if kind not in ("parameter", "buffer"):
        raise _Bad(f"{where}.kind is {kind!r}, not parameter or buffer")
    info = TensorInfo(
        kind=kind,
        shape=_row(value, "shape", _size),
        dtype=_dtype(value.get("dtype"), f"{where}.dtype"),
        requires_grad=_get(value, "requires_grad", bool),
        channels_last=_get(value, "channels_last", bool),
    )
    differentiable = DTYPES[info.dtype].is_floating_point or DTYPES[info.dtype].is_complex
    if info.requires_grad and not (kind == "parameter" and differentiable):
        raise _Bad(f"{where} is a {info.dtype} {kind}, which cannot require a gradient")
    if info.channels_last and len(info.shape) not in (4, 5):
        raise _Bad(f"{where} has {len(info.shape)} axes, which have no channels_last")
    return info


def _change(value: Any, where: str) -> Change:
    """An integer attribute, or a row of integers: nothing else may be set on a module."""
    name = _get(value, "name", str)
    parts = name.split(".")
    row = len(parts) > 1 and any(p.isdecimal() for p in parts)  # of a list of dicts, such as timm's feature_info
    known = (
        all(p.isdecimal() or is_identifier(p) for p in parts) if row else len(parts) <= 2 and is_identifier(parts[-1])
    )
    if not (known and is_identifier(parts[0])) or name == "training":
        raise _Bad(f"{where} changes {name!r:.60}, which is no attribute that pruning changes")

    def integers(key: str) -> int | tuple[int, ...]:
        found = value.get(key)
        if isinstance(found, list):
            return tuple(_size(v, f"{where}.{key}") for v in found)
        return _size(found, f"{where}.{key}")

    change = Change(_get(value, "path", str), name, integers("before"), integers("after"))
    shapes = [len(v) if isinstance(v, tuple) else None for v in (change.before, change.after)]
    if shapes[0] != shapes[1]:
        raise _Bad(f"{where} turns {change.before} into {change.after}")
    return change


def _skip(value: Any, where: str) -> SkipInfo:
    sizes = _row(value, "sizes", _rule)
    try:
        answer = from_data(value.get("answer"), len(sizes))
        if "block" not in value:
            return SkipInfo(answer, sizes)
        return SkipInfo(answer, sizes, _get(value, "block", str), key_of(value.get("key")))
    except (ValueError, RecursionError) as e:
        raise _Bad(f"{where}: {e}") from e


def _rule(value: Any, where: str) -> int:
    """A size of zeros, or (negative) the share of an input's."""
    if not _is(value, int) or not -(2**31) < value < 2**31:
        raise _Bad(f"{where} is {value!r:.60}, not a size of zeros")
    return int(value)


def _check(value: Any, where: str) -> Check:
    held = value if isinstance(value, dict) else {}
    error, tolerance = (_number(held.get(k), f"{where}.{k}") for k in ("error", "tolerance"))
    note = _text(held.get("note", ""), f"{where}.note")
    return Check(_get(value, "name", str), error, tolerance, note)


def _cause(value: Any, where: str) -> Cause:
    return Cause(_get(value, "name", str), _get(value, "axes", int), _number(value.get("share"), f"{where}.share"), ())


def _timing(data: Any) -> Timing:
    before, after = (_number(_get(data, k, object), f"timing.{k}") for k in ("before", "after"))
    shares = {k: None if data.get(k) is None else _number(data[k], f"timing.{k}") for k in ("predicted", "asked")}
    tries = _size(_get(data, "tries", object), "timing.tries")
    if not (0 < before < math.inf and 0 < after < math.inf):
        raise _Bad(f"timing has {before:g} and {after:g} seconds, not two times")
    if any(v is not None and not v < 1 for v in shares.values()):
        raise _Bad(f"timing has shares {shares} that are not below 1")
    return Timing(before, after, **shares, device=_get(data, "device", str), tries=tries)


def _told(data: dict[str, Any]) -> Told:
    return Told(
        scoring=_row(data, "scoring", _text),
        unread=_row(data, "unread", _text),
        unseen=_get(data, "unseen", str),
        outputs=_get(data, "outputs", str),
        reduced=_row(data, "reduced", _text),
        stale=_row(data, "stale", _stale),
        maker=_text(data.get("maker", ""), "maker"),
        steps=_row({"steps": [], **data}, "steps", _text),
        fitted=_row({"fitted": [], **data}, "fitted", _text),
    )


def _stale(value: Any, where: str) -> Stale:
    now = _row(value, "now", _size)
    return Stale(_get(value, "path", str), _get(value, "name", str), _size(value.get("value"), f"{where}.value"), now)


# ---- what a report's page shows ---------------------------------------------------------------------------------


def _anatomy(data: Any, where: str) -> Anatomy:
    if not isinstance(data, dict):
        raise _Bad(f"{where} is a {type(data).__name__}, not a dict")
    return Anatomy(
        layers=_row(data, "layers", _layer),
        groups=_row(data, "groups", _choice),
        frozen=_row(data, "frozen", _held),
        links=_row(data, "links", _link),
    )


def _layer(value: Any, where: str) -> Layer:
    params, macs = (_row(value, key, _number) for key in ("params", "macs"))
    if len(params) != 2 or len(macs) != 2:
        raise _Bad(f"{where} has no two costs")
    tensors = _row(value, "tensors", _cut_tensor)
    return Layer(_get(value, "name", str), _get(value, "kind", str), tensors, (int(params[0]), int(params[1])), macs)


def _cut_tensor(value: Any, where: str) -> tuple[str, Shape, Shape | None]:
    if not isinstance(value, list) or len(value) != 3:
        raise _Bad(f"{where} is no tensor with its shapes")
    before, after = _row({where: value[1]}, where, _size), value[2]
    return _text(value[0], where), before, None if after is None else _row({where: after}, where, _size)


def _choice(value: Any, where: str) -> Choice:
    spread = {key: _row(value, key, _number) for key in ("kept", "gone")}
    if any(len(v) not in (0, 3) for v in spread.values()):
        raise _Bad(f"{where} has scores that are not lowest, middle and highest")
    return Choice(
        name=_get(value, "name", str),
        kind=_get(value, "kind", str),
        before=max(1, _size(value.get("before"), f"{where}.before")),
        after=_size(value.get("after"), f"{where}.after"),
        tensors=_row(value, "tensors", _text),
        **spread,
    )


def _held(value: Any, where: str) -> Held:
    tensor, cause, why, op, source = (_get(value, key, str) for key in ("tensor", "cause", "why", "op", "source"))
    axis, positions = (_size(value.get(key), f"{where}.{key}") for key in ("axis", "positions"))
    return Held(tensor, axis, positions, cause, why, op, source)


def _link(value: Any, where: str) -> tuple[str, str, str]:
    found = _row({where: value}, where, _text)
    if len(found) != 3:
        raise _Bad(f"{where} does not name two layers and a group")
    return found


def _plan(data: Any, where: str) -> Plan:
    """A plan whose every field has its type."""
    for key in ("model", "fingerprint", "of", "criterion"):
        _get(data, key, str)
    for key in ("ratio", "achieved"):
        _number(data.get(key), f"{where}.{key}")
    for key in ("removed", "sizes", "norms", "cost"):
        _get(data, key, dict)
    plan = Plan.from_json(json.dumps(data))
    for name, gone in plan.removed.items():
        n = plan.sizes.get(name, 0)
        if list(gone) != sorted(set(gone)) or any(not 0 <= c < n for c in gone) or len(gone) >= n > 0:
            raise _Bad(f"the plan removes channels {list(gone)[:4]}... of group {name!r}, which has {n}")
    for name, norm in plan.norms.items():
        _norm(norm, f"{where}.norms[{name!r}]")
    return plan


def _norm(norm: NormChange, where: str) -> None:
    _size(norm.before, f"{where}.before")
    _size(norm.after, f"{where}.after")
    if not isinstance(norm.exact, bool):
        raise _Bad(f"{where}.exact is not true or false")
