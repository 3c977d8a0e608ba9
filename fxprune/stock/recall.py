"""What a model's class was called with, where no config records it.

called_with     watched, while something else (a registered function) makes such a model anew
recalled        found in the module: attributes of the same names, lengths and classes of its parts; taken only if
                that makes the same tensors
"""

from __future__ import annotations

import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.adapter import Constructor
from fxprune.stock.oracle import named_tensors

PLAIN = (int, float, str, list, tuple, dict, type(None))
MOST = 256  # calls that are tried
NO_ARGUMENTS = ("self", "device", "dtype")


def called_with(cls: type, make: Callable[[], Any]) -> dict[str, Any]:
    """The arguments of the first call of a class's `__init__` while `make` runs, defaults included."""
    code = getattr(cls.__init__, "__code__", None)
    seen: dict[str, Any] = {}

    def watch(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is code and not seen:
            seen.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        make()
    finally:
        sys.setprofile(before)
    more = seen.pop("kwargs", {})
    held = {k: v for k, v in {**seen, **(more if isinstance(more, dict) else {})}.items() if k not in NO_ARGUMENTS}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in held.items() if _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def recalled(model: nn.Module) -> Constructor | None:
    """The class of a model with arguments that make the same tensors; None where none are found."""
    cls: Any = type(model)
    shapes = _shapes(model)
    candidates = {p.name: list(_candidates(model, p)) for p in _parameters(cls)}
    calls = itertools.product(*candidates.values())
    for values in itertools.islice(calls, MOST):
        config = dict(zip(candidates, values, strict=True))
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                made = cls(**config)
        except Exception:  # noqa: BLE001 - it was not called so
            continue
        if _shapes(made) == shapes:
            return Constructor(cls.__name__, config, lambda c: cls(**c))
    return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in named_tensors(model)}


def _parameters(cls: type) -> list[inspect.Parameter]:
    """The arguments of a class but for those that take any number."""
    found = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _candidates(model: nn.Module, parameter: inspect.Parameter) -> Iterator[Any]:
    """What a parameter may have been, the likeliest first, each once."""
    found = list(_guesses(model, parameter))
    kept = [v for i, v in enumerate(found) if not any(type(v) is type(o) and v == o for o in found[:i])]
    return iter(kept)


def _guesses(model: nn.Module, parameter: inspect.Parameter) -> Iterator[Any]:
    own = vars(model).get(parameter.name, inspect.Parameter.empty)
    if isinstance(own, (int, float, str, list, tuple)):
        yield list(own) if isinstance(own, tuple) else own
        return
    for module in model.modules():
        held = vars(module).get(parameter.name)
        if isinstance(held, (int, float, str)):
            yield held
    default = parameter.default
    if default is not parameter.empty:
        yield default
    asked = str(parameter.annotation)
    if default is parameter.empty and asked.startswith("type["):
        yield from dict.fromkeys(type(m) for part in _containers(model) for m in part)
    elif default is parameter.empty and "list" in asked.lower():
        yield [len(part) for part in _containers(model, top=True)]
    elif isinstance(default, int) and not isinstance(default, bool):
        yield from _last_sizes(model)
        yield from (v for k, v in vars(model).items() if type(v) is int and not k.startswith("_"))
    elif default is parameter.empty:
        yield from (len(part) for part in _containers(model))


def _containers(model: nn.Module, top: bool = False) -> list[nn.Module]:
    parts = model.children() if top else model.modules()
    return [m for m in parts if isinstance(m, (nn.Sequential, nn.ModuleList)) and len(m)]


def _last_sizes(model: nn.Module) -> Iterator[int]:
    """The width of the last layer: how many classes there are."""
    last = [p for p in model.parameters() if p.dim()][-1:]
    yield from (p.shape[0] for p in last)
