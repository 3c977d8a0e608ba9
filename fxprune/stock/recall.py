"""What a model's class was called with, where no config records it.

called_with     watched, while something else (a registered function) makes such a model anew
recalled        found in the module: attributes of the same names, lengths and classes of its parts; taken only if
                that makes the same tensors
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.adapter import Constructor
from fxprune.stock.oracle import named_tensors, silenced

PLAIN = (int, float, str, list, tuple, dict, type(None))
ROUNDS = 3  # through the arguments, whose right values may hang on each other
NO_ARGUMENTS = ("self", "device", "dtype")


def called_with(cls: Any, make: Callable[[], Any]) -> dict[str, Any]:
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
    """The class of a model with arguments that make the same tensors; None where none are found.

    One argument after the other becomes what makes the most tensors right, the others as they are so far.
    """
    cls: Any = type(model)
    wanted = _shapes(model)
    candidates = {p.name: list(_candidates(model, p)) for p in _parameters(cls)}
    if not all(candidates.values()):
        return None

    def right(config: dict[str, Any]) -> int:
        try:
            with silenced(), torch.random.fork_rng(devices=[]), torch.device("meta"):
                made = _shapes(cls(**config))
        except Exception:  # noqa: BLE001 - it was not called so
            return -(10**9)
        return sum(wanted.get(n) == s for n, s in made.items()) - len(made.keys() ^ wanted.keys())

    config = {name: values[0] for name, values in candidates.items()}
    best = right(config)
    for _ in range(ROUNDS):
        for name, values in candidates.items():
            for value in values[1:] if best < len(wanted) else ():
                if (count := right(tried := {**config, name: value})) > best:
                    config, best = tried, count
    return Constructor(cls.__name__, config, lambda c: cls(**c)) if best == len(wanted) else None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in named_tensors(model)}


def _parameters(cls: Any) -> list[inspect.Parameter]:
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
    elif (isinstance(default, int) and not isinstance(default, bool)) or default is parameter.empty:
        yield from (len(part) for part in _containers(model))
        yield from (v for k, v in vars(model).items() if type(v) is int and not k.startswith("_"))
        yield from _sizes(model)


def _containers(model: nn.Module, top: bool = False) -> list[Any]:
    parts = model.children() if top else model.modules()
    return [m for m in parts if isinstance(m, (nn.Sequential, nn.ModuleList)) and len(m)]


def _sizes(model: nn.Module) -> Iterator[int]:
    """The sizes of its tensors, those of the last layer first: how many classes there are."""
    for p in reversed(list(model.parameters())):
        yield from p.shape
