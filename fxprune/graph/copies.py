"""Copies of modules that run on their own parts.

`copy.deepcopy` leaves functions as they are, so a forward (or a hook) that is a closure over submodules would go on to
run the modules it was made with; and it refuses tensors with a history, which old weight norms and hooks keep.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import InputsError


def deep_copy(model: nn.Module, instead: Iterable[tuple[torch.Tensor, torch.Tensor]] = ()) -> nn.Module:
    """A copy of a model with some tensors replaced; its closures close over its own modules and tensors.

    Tensors that are kept from a forward with gradients are copied detached.

    Raises:
        InputsError: it holds what cannot be copied.
    """
    held = [v for m in model.modules() for v in _inside(m.__dict__)]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in held if isinstance(t, torch.Tensor) and not t.is_leaf}
    memo |= {id(old): new for old, new in instead}
    try:
        made = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as e:
        raise InputsError(
            f"this {type(model).__name__} cannot be copied ({type(e).__name__}: {e!s:.200}): take off the "
            "attribute, or the hook's store, that holds what copy.deepcopy refuses"
        ) from e
    for module in made.modules():
        rebind(module, memo)
    return made


def rebind(module: nn.Module, instead: dict[int, Any]) -> None:
    """Give a module's functions (attributes and hooks, in containers too) other objects to close over, by old id."""
    for name, value in list(module.__dict__.items()):
        if name not in ("_parameters", "_buffers", "_modules"):
            module.__dict__[name] = _rebound(value, instead)


def _rebound(value: Any, instead: dict[int, Any]) -> Any:
    """The same with new closures for those that close over something of `instead`; containers change in place."""
    if isinstance(value, dict):
        for k, v in list(value.items()):
            value[k] = _rebound(v, instead)
    elif isinstance(value, list):
        value[:] = [_rebound(v, instead) for v in value]
    elif type(value) is tuple:
        fresh = tuple(_rebound(v, instead) for v in value)
        return value if all(map(_same, fresh, value)) else fresh
    elif type(value) is functools.partial:
        parts = (value.func, value.args, dict(value.keywords))
        func, args, keywords = (_new(p, instead) for p in parts)
        return functools.partial(func, *args, **keywords)
    elif isinstance(value, (types.FunctionType, weakref.ref)) and _closes_over(value, instead, set()):
        return _new(value, instead)
    return value


def _same(a: Any, b: Any) -> bool:
    return a is b


def _new(value: Any, instead: dict[int, Any]) -> Any:
    """What stands for a value that a closure holds: itself, if nothing of `instead` is in it."""
    if id(value) in instead:
        return instead[id(value)]
    if isinstance(value, types.FunctionType) and _closes_over(value, instead, set()):
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        instead[id(value)] = made
        for cell, old in zip(cells, value.__closure__ or (), strict=True):
            if (content := _content(old)) is not _EMPTY:
                cell.cell_contents = _new(content, instead)
        made.__defaults__ = _new(value.__defaults__, instead)
        made.__kwdefaults__ = _new(value.__kwdefaults__, instead)
        made.__dict__.update(value.__dict__)
        made.__qualname__, made.__module__ = value.__qualname__, value.__module__
        return made
    if type(value) is weakref.ref and id(value()) in instead:
        return weakref.ref(instead[id(value())])
    if type(value) in (list, tuple):
        return type(value)(_new(v, instead) for v in value)
    if type(value) is dict:
        return {k: _new(v, instead) for k, v in value.items()}
    if type(value) is functools.partial:
        return _rebound(value, instead)
    if isinstance(value, types.MethodType) and id(value.__self__) in instead:
        return types.MethodType(value.__func__, instead[id(value.__self__)])
    return value


_EMPTY = object()


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the name is not bound yet
        return _EMPTY


def _closes_over(function: Any, instead: Mapping[int, Any], seen: set[int]) -> bool:
    """Whether something of `instead` is among what a function closes over, at any depth, or a reference refers to."""
    return any(id(v) in instead for v in _inside(function, seen))


def _inside(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """A value and what it holds in containers, closures, defaults, partials and methods; modules are not entered."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    for v in _held(value):
        yield from _inside(v, seen)


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, (nn.Module, torch.Tensor)):
        return ()
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set)):
        return list(value)
    if isinstance(value, types.FunctionType):
        cells = [v for cell in value.__closure__ or () if (v := _content(cell)) is not _EMPTY]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if type(value) is weakref.ref:
        return [value()]
    return [value.func, *value.args, *value.keywords.values()] if isinstance(value, functools.partial) else ()
