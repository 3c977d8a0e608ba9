"""A scope in which a forward leaves nothing behind on the model: attributes, hooks, caches, and values of buffers."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def _holders(model: nn.Module) -> Iterator[dict[str, Any]]:
    """The attributes of every module, and of plain objects that modules hold (a table of positions, say)."""
    for m in model.modules():
        yield m.__dict__
        for v in list(m.__dict__.values()):
            if (
                hasattr(v, "__dict__")
                and not isinstance(v, (nn.Module, torch.Tensor, type))
                and not inspect.isroutine(v)
            ):
                yield v.__dict__


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes and hooks it had: what the forward keeps of fake tensors is let go."""
    was = [(held, dict(held)) for held in _holders(model)]
    kept = [v for _, before in was for k, v in before.items() if k != "_modules"]
    caches = [(v, copy.copy(v)) for v in _containers(kept)]
    try:
        yield
    finally:
        for held, before in was:
            held.clear()
            held.update(before)
        for cache, content in caches:
            cache.clear()
            (cache.extend if isinstance(cache, list) else cache.update)(content)
        for clear in _memories(model):
            clear()


def _containers(values: Iterable[Any]) -> list[Any]:
    """The dicts and lists among some values, those within them too, each once."""
    found: dict[int, Any] = {}
    stack = list(values)
    while stack:
        value = stack.pop()
        if type(value) in (dict, list, OrderedDict, tuple) and id(value) not in found:
            found[id(value)] = value
            stack += value.values() if isinstance(value, dict) else value
    return [v for v in found.values() if type(v) is not tuple]


def _memories(model: nn.Module) -> set[Callable[[], None]]:
    """How to empty what `functools.lru_cache` remembers of the methods of the model's classes."""
    classes = {c for m in model.modules() for c in type(m).__mro__ if not c.__module__.startswith("torch.")}
    cached = (v for c in classes for v in vars(c).values() if hasattr(v, "cache_clear") and hasattr(v, "cache_info"))
    return {v.cache_clear for v in cached}


@contextlib.contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards every buffer has the values and the shape it had: a forward in train mode moves the averages of batch
    norms, and observers of ranges move (and make room for) theirs in any mode.
    """
    was = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            for b, before in was:
                (b if b.shape == before.shape else b.resize_(before.shape)).copy_(before)


class _Writes(TorchFunctionMode):
    """Within, parameters are copied before something is written into them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.of: dict[int | None, Tensor] = {place: p for p in model.parameters() if (place := _place(p)) is not None}
        self.was: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        into = kwargs.get("out", args[0] if args and _writes(getattr(func, "__name__", "")) else None)
        parameter = self.of.get(_place(into))
        if parameter is not None and id(parameter) not in self.was:
            self.was[id(parameter)] = (parameter, parameter.detach().clone())
        return func(*args, **kwargs)


def _writes(name: str) -> bool:
    """Whether a function of that name changes its first argument."""
    name = name.partition(".")[0]
    if name.startswith("__"):
        return name == "__setitem__" or name in {f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "pow")}
    return name.endswith("_")


def _place(value: Any) -> int | None:
    """Where in memory a tensor's numbers lie; None for what has none of its own."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_meta:
        return None
    try:
        return int(value.untyped_storage().data_ptr())
    except NotImplementedError:  # a tensor within torch.vmap
        return None


@contextlib.contextmanager
def same_parameters(model: nn.Module) -> Iterator[None]:
    """Afterwards every parameter has the values it had: some models write into their weights when they train (EDM2
    normalises them).  Only what is written is copied.
    """
    writes = _Writes(model)
    try:
        with writes:
            yield
    finally:
        with torch.no_grad():
            for parameter, before in writes.was.values():
                parameter.copy_(before)
