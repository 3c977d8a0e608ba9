"""What `fxprune.json` holds, read and written: plain data, every field checked before anything is built from it.

    format      version of this format
    kind        "model", or "pipeline": a diffusers pipeline with pruned components, each a "model" folder of its own
    class       {module, name}
    versions    {fxprune, torch, ...} that wrote it
    metrics     what the caller measured, or null
    checksums   of this file and the others (see `fxprune.saving.checksums`); older folders have none

of a model                                              of a pipeline
    config      what the stock module was made with         components  the pruned ones
    adapter     which builds it from that (null: diffusers' own class)
    plan, criterion, budget, seed                           dtypes      of the other modules
    earlier     plans, where it was pruned several times
    tensors     name -> {kind, shape, dtype, ...}           files       all files in the folder
    tied        name -> name of the tensor it shares
    changes     attributes: {path, name, before, after}
    skips       modules that were taken out, by path: {answer, sizes} (see `fxprune.rewriting.skip`), and where a linear
                map stands for blocks {block, key} (see `fxprune.rewriting.fitted`), whose layer is `PATH.fitted`
    forward, checks, held
    timing      seconds of a forward before and after, and the device; null: not timed (older folders have none)
    anatomy     what went layer by layer, for a report's page (null: nobody knows; older folders have none)
    told        what else the report says (older folders have none): {scoring, unread, unseen, outputs, reduced, stale,
                maker, steps, fitted}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

import torch

from fxprune.errors import SaveError, printable
from fxprune.planning.plan import Plan
from fxprune.planning.plan_json import plan_data, text_of
from fxprune.reporting.anatomy import Anatomy
from fxprune.reporting.report import Cause, Report
from fxprune.reporting.speed import Timing
from fxprune.rewriting.attributes import Change
from fxprune.rewriting.skip import Answer, Key, to_data
from fxprune.rewriting.unread import Stale
from fxprune.saving import checksums
from fxprune.verification import Check

FORMAT = 1
HEADER = checksums.HEADER
_NAMES = """float64 float32 float16 bfloat16 complex64 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool
float8_e4m3fn float8_e5m2 float8_e8m0fnu"""
DTYPES: dict[str, torch.dtype] = {n: getattr(torch, n) for n in _NAMES.split() if hasattr(torch, n)}
_IDENTIFIER = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class TensorInfo:
    """A parameter or buffer: `kind` is "parameter" or "buffer"; `channels_last` its memory format."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool = False
    channels_last: bool = False


@dataclass(frozen=True)
class SkipInfo:
    """What answers for a module that was taken out, the sizes of its zeros, and the block that a linear map stands for
    (None: there is no map) with the input that the map reads."""

    answer: Answer
    sizes: tuple[int, ...]
    block: str | None = None
    key: Key = 0

    @property
    def data(self) -> dict[str, Any]:
        """As JSON data."""
        line = {} if self.block is None else {"block": self.block, "key": self.key}
        return {"answer": to_data(self.answer), "sizes": list(self.sizes), **line}


@dataclass(frozen=True)
class Told:
    """What a report says in words, by the names of its attributes (see `Report`)."""

    scoring: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    unseen: str = ""
    outputs: str = ""
    reduced: tuple[str, ...] = ()
    stale: tuple[Stale, ...] = ()
    maker: str = ""
    steps: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """Attribute -> value."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Saved:
    """A saved model, all but the values of its tensors."""

    module: str
    name: str
    tensors: Mapping[str, TensorInfo]
    tied: Mapping[str, str]
    adapter: str | None = None
    config: Mapping[str, Any] | None = None
    plan: Plan | None = None
    earlier: tuple[Plan, ...] = ()
    changes: tuple[Change, ...] = ()
    skips: Mapping[str, SkipInfo] = field(default_factory=dict)
    forward: str = "module"
    checks: tuple[Check, ...] = ()
    held: tuple[Cause, ...] = ()
    seed: int | None = None
    told: Told = Told()
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    anatomy: Anatomy | None = field(default=None, repr=False)
    timing: Timing | None = None

    @property
    def report(self) -> Report | None:
        """What is known of how it was pruned; None where it was not."""
        if self.plan is None:
            return None
        kept: dict[str, Any] = {"held": self.held, "seed": self.seed, "earlier": self.earlier, "anatomy": self.anatomy}
        kept["timing"] = self.timing
        return Report(self.plan, self.changes, self.checks, **kept, **self.told.values())

    def __repr__(self) -> str:
        wrote = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        plan = "not pruned" if self.plan is None else repr(self.plan)
        told = f"saved {self.name}: {len(self.tensors)} tensors, {len(self.changes)} changed attributes ({wrote})"
        return printable(f"{told}\n{plan}")


@dataclass(frozen=True)
class SavedPipeline:
    """A saved diffusers pipeline: `components` are the pruned ones, `dtypes` those of its other modules."""

    module: str
    name: str
    components: tuple[str, ...]
    dtypes: Mapping[str, str]
    files: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)


Header: TypeAlias = "Saved | SavedPipeline"


def class_name(cls: type) -> str:
    """The qualified name of a class; its last part is its `__name__`, also where a decorator gave it that alone."""
    outer, dot, _ = cls.__qualname__.rpartition(".")
    return f"{outer}{dot}{cls.__name__}"


def is_identifier(name: str) -> bool:
    """Whether a name can stand for an attribute or a sub-folder: ASCII, no leading underscore, dot or slash."""
    return _IDENTIFIER.fullmatch(name) is not None


# ---- writing -------------------------------------------------------------------------------------


def to_json(saved: Header, name: str = HEADER) -> str:
    """The text of `fxprune.json`, or of what a variant calls it.

    Raises:
        SaveError: where config or metrics hold what JSON cannot.
    """
    named: list[Any] = list(saved.metrics or ())
    if odd := [k for k in named if not isinstance(k, str)]:
        raise SaveError(f"metrics= has the key {odd[0]!r:.60}; name what you measured by strings")
    data = _model_data(saved) if isinstance(saved, Saved) else _pipeline_data(saved)
    for key in ("config", "metrics"):
        try:
            json.dumps(data.get(key), allow_nan=False)
        except (TypeError, ValueError) as e:
            raise SaveError(
                f"the {key} of this {saved.name} cannot be written as JSON ({e}); use strings, booleans, finite "
                "numbers, lists and dicts of these"
            ) from e
    data[checksums.ENTRY] = {**saved.checksums, name: checksums.of_header(json.loads(json.dumps(data)))}
    return text_of(dict(sorted(data.items())), depth=3, nan=False) + "\n"


def _common(saved: Header, kind: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind,
        "class": {"module": saved.module, "name": saved.name},
        "versions": dict(saved.versions),
        "metrics": None if saved.metrics is None else dict(saved.metrics),
    }


def _model_data(saved: Saved) -> dict[str, Any]:
    plan = saved.plan
    return _common(saved, "model") | {
        "adapter": saved.adapter,
        "config": None if saved.config is None else dict(saved.config),
        "plan": None if plan is None else plan_data(plan),
        "earlier": [plan_data(p) for p in saved.earlier],
        "criterion": None if plan is None else plan.criterion,
        "budget": None if plan is None else {"ratio": plan.ratio, "of": plan.of, "achieved": plan.achieved},
        "seed": saved.seed,
        "tensors": {name: asdict(info) for name, info in saved.tensors.items()},
        "tied": dict(saved.tied),
        "changes": [asdict(c) for c in saved.changes],
        "skips": {path: s.data for path, s in saved.skips.items()},
        "forward": saved.forward,
        "checks": [asdict(c) for c in saved.checks],
        "held": [{"name": c.name, "axes": c.axes, "share": c.share} for c in saved.held],
        "anatomy": None if saved.anatomy is None else asdict(saved.anatomy),
        "timing": None if saved.timing is None else asdict(saved.timing),
        "told": asdict(saved.told),
    }


def _pipeline_data(saved: SavedPipeline) -> dict[str, Any]:
    return _common(saved, "pipeline") | {
        "components": list(saved.components),
        "dtypes": dict(saved.dtypes),
        "files": list(saved.files),
    }
