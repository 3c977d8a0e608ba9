"""While a module is exported, its integers remember where they came from, and calls with such integers are recorded.

`torch.export` turns `x.view(b, n, self.num_heads, c // self.num_heads)` into constants.  So while it runs, the integer
attributes of modules and the sizes of tensors are `TracedInt`s.  A torch-function mode records, for every call with
such an argument, the expressions, and marks the fx nodes that the call created with the number of the call.  Memoised
functions take equal integers for the same, so they are computed anew meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.fx.traceback as fx_traceback
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.graph.outputs import Outputs
from fxprune.graph.packed import item, stand_in
from fxprune.graph.packing import called
from fxprune.graph.provenance import Attr, Call, Recorder, Size, TracedInt, fields_of, holders_of, plain
from fxprune.graph.values import Noting, Values

MARK = "fxprune_call"


def _origin(x: torch.Tensor) -> tuple[str, Any] | None:
    return getattr(x, "_fxprune_origin", None)


_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_ARITHMETIC = {
    *(f"{kind}{op}" for kind in ("", "r", "i") for op in ("add", "sub", "mul", "div", "truediv", "pow")),
    *("subtract", "multiply", "divide", "true_divide", "float_power", "tensor", "as_tensor", "scalar_tensor"),
}


class RecordingMode(TorchFunctionMode):
    """Unwraps traced integers, records the call, and marks the nodes and tensors that come out of it."""

    def __init__(self, recorder: Recorder, values: Values | None = None) -> None:
        super().__init__()
        self.recorder, self.values = recorder, values

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__" and args and isinstance(args[0], torch.Tensor):
            if func == _DATA:  # export takes what `.data` gives for a constant; this is the same view, and known to it
                return args[0].detach()
            out = func(*args, **kwargs)
            if type(out) is torch.Size:
                return self._sizes(args[0], out)
            return out
        if name == "size" and args and isinstance(args[0], torch.Tensor):
            sizes = self._sizes(args[0], torch.Size(args[0].shape))
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return sizes if dim is None else sizes[int(dim)]
        if name == "numel" and args and isinstance(args[0], torch.Tensor):
            return math.prod(self._sizes(args[0], torch.Size(args[0].shape)))
        if self.values is not None:
            if (size := item(name, args)) is not None:
                return size
            answered, args = self.values.answer(name, args)
            if answered:
                return args
            func = stand_in(name, func, args, functools.partial(self.values.take, name)) or func
        number = self.recorder.count
        self.recorder.count += 1
        flat = pytree.tree_leaves((args, kwargs), is_leaf=lambda x: isinstance(x, (torch.Size, slice)))
        self.recorder.note(name, *kwargs, *map(self._sign, flat))
        if any(isinstance(x, (int, torch.Size, slice)) for x in flat):
            if name.strip("_") in _ARITHMETIC:
                for x in flat:
                    if isinstance(x, TracedInt):
                        self.recorder.number(x.expr)
            self.recorder.calls[number] = Call(name, args, kwargs)
            args, kwargs = plain(args), plain(kwargs)
        with fx_traceback.annotate({MARK: number}):
            out = func(*args, **kwargs)
        if name == "contiguous":
            out = self.recorder.copied(number, args[0], out)
        for k, x in enumerate(out if isinstance(out, (tuple, list)) else [out]):
            if isinstance(x, torch.Tensor) and _origin(x) is None:
                with contextlib.suppress(Exception):
                    x._fxprune_origin = ("call", (number, k, tuple(map(int, x.shape))))  # type: ignore[attr-defined]
        return out

    def _sign(self, x: Any) -> Any:
        """What tells an argument from another, alike for tensors with values and without."""
        if isinstance(x, torch.Tensor):
            return _origin(x) or self.recorder.unknown(x)
        if isinstance(x, (slice, torch.Size)):
            parts = (x.start, x.stop, x.step) if isinstance(x, slice) else x
            return type(x).__name__, *map(self._sign, parts)
        if isinstance(x, TracedInt):
            return "traced", x.expr
        plain_ones = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))
        return type(x).__name__, repr(x) if isinstance(x, plain_ones) else ""

    def _sizes(self, x: torch.Tensor, sizes: torch.Size) -> torch.Size:
        origin = _origin(x)
        if origin is None:
            return sizes
        return torch.Size(
            [
                TracedInt(s, Size(origin, i, s), self.recorder) if type(s) is int and s > 0 else s
                for i, s in enumerate(sizes)
            ]
        )


def _traced(value: Any, leaf: Callable[[int, int | None], Attr], recorder: Recorder) -> Any:
    if (type(value) is int or isinstance(value, np.integer)) and value > 1:
        return TracedInt(int(value), leaf(int(value), None), recorder)
    if type(value) in (tuple, list) and value and all(type(v) is int for v in value):
        return type(value)(TracedInt(v, leaf(v, i), recorder) if v > 1 else v for i, v in enumerate(value))
    return value


@contextlib.contextmanager
def traced_attributes(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Within, the integer attributes of the model's modules, those of their classes, and those of plain objects that
    they hold are `TracedInt`s."""
    undo: list[tuple[dict[Any, Any], Any, Any]] = []
    seen: set[int] = set()

    def tag(space: dict[Any, Any], path: str, holder: str, default: Mapping[str, Any] = MappingProxyType({})) -> None:
        for key, value in {**default, **space}.items():
            if not isinstance(key, str) or key.startswith("_") or key == "training":
                continue
            new = _traced(value, lambda v, i, key=key: Attr(path, key, v, i, holder), recorder)  # type: ignore[misc]
            if new is not value:
                undo.append((space, key, space.get(key, _OF_CLASS)))
                space[key] = new

    try:
        for path, module in model.named_modules():
            held = {k: v for k, v in holders_of(module).items() if id(v) not in seen}
            tag(module.__dict__, path, "", integers_of_class(type(module)))
            for name, holder in held.items():
                seen.add(id(holder))
                tag(fields_of(holder), path, name)
        yield
    finally:
        for space, key, value in undo:
            if value is _OF_CLASS:
                del space[key]
            else:
                space[key] = value


_OF_CLASS = object()  # stands for what an instance had not


def integers_of_class(cls: type) -> dict[str, int]:
    """The integers that a class, and those above it that are not torch's, have for all instances."""
    above = [c for c in reversed(cls.__mro__) if not c.__module__.startswith(("torch.", "builtins"))]
    return {k: v for c in above for k, v in vars(c).items() if type(v) is int}


_GATES = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@contextlib.contextmanager
def open_functional() -> Iterator[None]:
    """Within, torch.nn.functional's Python functions run their bodies under the mode, instead of one opaque call."""
    import torch.nn.functional as functional

    saved = {k: getattr(functional, k) for k in _GATES}
    try:
        for k in _GATES:
            setattr(functional, k, lambda *a, **kw: False)
        yield
    finally:
        for k, v in saved.items():
            setattr(functional, k, v)


class Recorded(nn.Module):
    """`model` under a `RecordingMode`: what is exported in place of the model itself."""

    def __init__(self, model: nn.Module, recorder: Recorder, values: Values | None, returned: Outputs) -> None:
        super().__init__()
        self.model = model
        self.__dict__.update(recorder=recorder, values=values, returned=returned)

    def noting(self, *args: Any, **kwargs: Any) -> None:
        """Run the model as it is, and note what its Python reads."""
        with torch.no_grad(), open_functional(), Noting(self.__dict__["values"]):
            called(self.model, (args, kwargs))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        recorder: Recorder = self.__dict__["recorder"]
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            with contextlib.suppress(Exception):
                tensor._fxprune_origin = ("param", name)  # type: ignore[attr-defined]
        for k, x in enumerate(pytree.tree_leaves((args, kwargs))):
            if isinstance(x, torch.Tensor):
                x._fxprune_origin = ("input", k)  # type: ignore[attr-defined]
        recorder.active = True
        try:
            with open_functional(), RecordingMode(recorder, self.__dict__["values"]):
                return self.__dict__["returned"](called(self.model, (args, kwargs)))
        finally:
            recorder.active = False
            recorder.calls = {k: Call(c.name, *_strip((c.args, dict(c.kwargs)))) for k, c in recorder.calls.items()}


def _strip(tree: Any) -> Any:
    """Tensors out of recorded arguments, so that nothing outlives the trace."""
    return pytree.tree_map(
        lambda x: None if isinstance(x, torch.Tensor) else x, tree, is_leaf=lambda x: isinstance(x, torch.Size)
    )


_OTHERS = sys.stdlib_module_names | {"torch", "sympy", "mpmath", "numpy"}  # see no integers of a model, or not as such


@contextlib.contextmanager
def bypassed(model: nn.Module, kind: type) -> Iterator[None]:
    """Within, what `functools.lru_cache` memoised is computed anew for arguments that hold a `kind`.

    Otherwise a cache (einops has one) would answer one layer with the integers of another, or of an earlier trace.
    Functions in modules and methods of the model's classes are found; memoised functions in closures are not.
    """
    modules = (m for name, m in list(sys.modules.items()) if name.partition(".")[0] not in _OTHERS)
    classes = {cls for m in model.modules() for cls in type(m).__mro__}
    undo: list[tuple[Any, str, Any]] = []
    try:
        for owner in (*modules, *classes):
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if isinstance(value, functools._lru_cache_wrapper):
                    setattr(owner, name, _anew(value, kind))
                    undo.append((owner, name, value))
        yield
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def _anew(memoised: Any, kind: type) -> Callable[..., Any]:
    @functools.wraps(memoised)
    def call(*args: Any, **kwargs: Any) -> Any:
        fresh = any(isinstance(x, kind) for x in pytree.tree_leaves((args, kwargs)))
        return (memoised.__wrapped__ if fresh else memoised)(*args, **kwargs)

    for method in ("cache_clear", "cache_info", "cache_parameters"):  # `wraps` leaves them out
        setattr(call, method, getattr(memoised, method))
    return call
