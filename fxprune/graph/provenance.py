"""Integers that remember where they came from.

`torch.export` turns `x.view(b, n, self.num_heads, c // self.num_heads)` into constants.  To bring a module's own
attributes along after pruning one has to know that the third number was `num_heads`, and the fourth was made from a
size of another tensor.  So while the model is exported, its integer attributes and the sizes of its tensors are
`TracedInt`s: integers that carry the expression that made them.  A torch-function mode records, for every call with
such an argument, the expressions, and marks the fx nodes that the call created with the number of the call.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.fx.traceback as fx_traceback
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.graph.values import Noting, Values

MARK = "fxprune_call"


@dataclass(frozen=True)
class Attr:
    """Leaf: the integer `old`, which is attribute `name` of the module at `path`, or its item `index`.

    `config` says that it is an attribute of the module's `.config`.
    """

    path: str
    name: str
    old: int
    index: int | None = None
    config: bool = False

    def __str__(self) -> str:
        where = f"{self.path}." if self.path else ""
        item = "" if self.index is None else f"[{self.index}]"
        return f"{where}{'config.' if self.config else ''}{self.name}{item}"


@dataclass(frozen=True)
class Size:
    """Leaf: the size `old` along `axis` of the tensor made by `origin` (see `Recorder`)."""

    origin: tuple[str, Any]
    axis: int
    old: int


@dataclass(frozen=True)
class Apply:
    """Inner node: `op` of two expressions."""

    op: str
    left: Expr
    right: Expr


Expr: TypeAlias = "Attr | Size | Apply | int"
_OPS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


class TracedInt(int):
    """An `int` with an expression; arithmetic with integers keeps it, comparing for equality reports it."""

    expr: Expr
    recorder: Recorder

    def __new__(cls, value: int, expr: Expr, recorder: Recorder) -> TracedInt:
        self = super().__new__(cls, value)
        self.expr, self.recorder = expr, recorder
        return self

    def _apply(self, op: str, other: Any, swap: bool = False) -> Any:
        if isinstance(other, torch.SymInt):  # a size that depends on data: no expression to keep
            pair: Any = (other, int(self)) if swap else (int(self), other)
            return _OPS[op](*pair)
        if type(other) is not int and not isinstance(other, TracedInt):
            return NotImplemented
        a, b = (other, self) if swap else (self, other)
        value = _OPS[op](int(a), int(b))
        if value == int(self) and int(other) == (1 if op in ("*", "//") else 0) and type(other) is int:
            return self  # times one, plus nothing
        return TracedInt(value, Apply(op, expr_of(a), expr_of(b)), self.recorder)

    def __add__(self, o: Any) -> Any:
        return self._apply("+", o)

    def __radd__(self, o: Any) -> Any:
        return self._apply("+", o, swap=True)

    def __sub__(self, o: Any) -> Any:
        return self._apply("-", o)

    def __rsub__(self, o: Any) -> Any:
        return self._apply("-", o, swap=True)

    def __mul__(self, o: Any) -> Any:
        return self._apply("*", o)

    def __rmul__(self, o: Any) -> Any:
        return self._apply("*", o, swap=True)

    def __floordiv__(self, o: Any) -> Any:
        return self._apply("//", o)

    def __rfloordiv__(self, o: Any) -> Any:
        return self._apply("//", o, swap=True)

    def __mod__(self, o: Any) -> Any:
        return self._apply("%", o)

    def __neg__(self) -> Any:
        return 0 - self

    def _number(self, value: Any) -> Any:
        """`value`, computed from this integer as a number: it can no more be a size."""
        self.recorder.number(self.expr)
        return value

    def __float__(self) -> float:
        return float(self._number(int(self)))

    def __truediv__(self, o: Any) -> Any:
        return self._number(int(self) / o)

    def __rtruediv__(self, o: Any) -> Any:
        return self._number(o / int(self))

    def __pow__(self, o: Any, modulus: Any = None) -> Any:
        return self._number(pow(int(self), o, modulus))

    def __rpow__(self, o: Any, modulus: Any = None) -> Any:
        return self._number(pow(o, int(self), modulus))

    def __lt__(self, o: Any) -> Any:
        return int(self) < (int(o) if isinstance(o, TracedInt) else o)

    def __le__(self, o: Any) -> Any:
        return int(self) <= (int(o) if isinstance(o, TracedInt) else o)

    def __gt__(self, o: Any) -> Any:
        return int(self) > (int(o) if isinstance(o, TracedInt) else o)

    def __ge__(self, o: Any) -> Any:
        return int(self) >= (int(o) if isinstance(o, TracedInt) else o)

    def __eq__(self, o: object) -> bool:
        if isinstance(o, torch.SymInt):
            return bool(o == int(self))
        same = int.__eq__(self, o)
        if same is True and isinstance(o, TracedInt):
            self.recorder.equal(self.expr, o.expr)
        return same

    def __ne__(self, o: object) -> bool:
        return not self == o

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __reduce__(self) -> Any:
        return (int, (int(self),))

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)


def expr_of(value: Any) -> Expr:
    """The expression of an integer (a plain one stands for itself)."""
    return value.expr if isinstance(value, TracedInt) else int(value)


def plain(value: Any) -> Any:
    """`value` with every `TracedInt` in it made an `int`."""

    def one(x: Any) -> Any:
        if isinstance(x, TracedInt):
            return int(x)
        if isinstance(x, slice):
            return slice(one(x.start), one(x.stop), one(x.step))
        if isinstance(x, torch.Size):
            return torch.Size([int(i) for i in x])
        return x

    return pytree.tree_map(one, value, is_leaf=lambda x: isinstance(x, torch.Size))


@dataclass(frozen=True)
class Call:
    """A torch call with traced integers: its name and its arguments as given."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass
class Recorder:
    """What was seen while the model ran: calls by number, pairs of expressions found equal, and expressions whose value
    went into a computation as a number (a temperature, say).

    The origin of a tensor is `("param", name)`, `("input", k)` or `("call", (number, output index, shape))`.
    """

    calls: dict[int, Call] = field(default_factory=dict)
    equalities: list[tuple[Expr, Expr]] = field(default_factory=list)
    numbers: list[Expr] = field(default_factory=list)
    count: int = 0
    active: bool = False

    def equal(self, a: Expr, b: Expr) -> None:
        if self.active and a != b:
            self.equalities.append((a, b))

    def number(self, expr: Expr) -> None:
        if self.active:
            self.numbers.append(expr)


def _origin(x: torch.Tensor) -> tuple[str, Any] | None:
    return getattr(x, "_fxprune_origin", None)


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
            answered, args = self.values.answer(name, args)
            if answered:
                return args
        number = self.recorder.count
        self.recorder.count += 1
        flat = pytree.tree_leaves((args, kwargs), is_leaf=lambda x: isinstance(x, (torch.Size, slice)))
        if any(isinstance(x, (int, torch.Size, slice)) for x in flat):
            if name.strip("_") in _ARITHMETIC:
                for x in flat:
                    if isinstance(x, TracedInt):
                        self.recorder.number(x.expr)
            self.recorder.calls[number] = Call(name, args, kwargs)
            args, kwargs = plain(args), plain(kwargs)
        with fx_traceback.annotate({MARK: number}):
            out = func(*args, **kwargs)
        for k, x in enumerate(out if isinstance(out, (tuple, list)) else [out]):
            if isinstance(x, torch.Tensor) and _origin(x) is None:
                with contextlib.suppress(Exception):
                    x._fxprune_origin = ("call", (number, k, tuple(map(int, x.shape))))  # type: ignore[attr-defined]
        return out

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
    if type(value) is int and value > 1:
        return TracedInt(value, leaf(value, None), recorder)
    if type(value) in (tuple, list) and value and all(type(v) is int for v in value):
        return type(value)(TracedInt(v, leaf(v, i), recorder) if v > 1 else v for i, v in enumerate(value))
    return value


@contextlib.contextmanager
def traced_attributes(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Within, the integer attributes of the model's modules (and of a `config` object they hold) are `TracedInt`s."""
    undo: list[tuple[dict[str, Any], str, Any]] = []
    seen: set[int] = set()

    def tag(space: dict[str, Any], path: str, config: bool) -> None:
        for key, value in list(space.items()):
            if key.startswith("_") or key == "training":
                continue
            new = _traced(value, lambda v, i, key=key: Attr(path, key, v, i, config), recorder)  # type: ignore[misc]
            if new is not value:
                undo.append((space, key, value))
                space[key] = new

    try:
        for path, module in model.named_modules():
            tag(module.__dict__, path, config=False)
            config = module.__dict__.get("config")
            if (
                config is not None
                and hasattr(config, "__dict__")
                and not isinstance(config, dict)
                and id(config) not in seen
            ):
                seen.add(id(config))
                tag(config.__dict__, path, config=True)
        yield
    finally:
        for space, key, value in undo:
            space[key] = value


_GATES = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@contextlib.contextmanager
def _open_functional() -> Iterator[None]:
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

    def __init__(self, model: nn.Module, recorder: Recorder, values: Values | None = None) -> None:
        super().__init__()
        self.model = model
        self.__dict__.update(recorder=recorder, values=values)

    def noting(self, *args: Any, **kwargs: Any) -> None:
        """Run the model as it is, and note what its Python reads."""
        with torch.no_grad(), _open_functional(), Noting(self.__dict__["values"]):
            self.model(*args, **kwargs)

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
            with _open_functional(), RecordingMode(recorder, self.__dict__["values"]):
                return self.model(*args, **kwargs)
        finally:
            recorder.active = False
            recorder.calls = {k: Call(c.name, *_strip((c.args, dict(c.kwargs)))) for k, c in recorder.calls.items()}


def _strip(tree: Any) -> Any:
    """Tensors out of recorded arguments, so that nothing outlives the trace."""
    return pytree.tree_map(
        lambda x: None if isinstance(x, torch.Tensor) else x, tree, is_leaf=lambda x: isinstance(x, torch.Size)
    )


def evaluate(expr: Expr, leaf: Callable[[Attr | Size], int]) -> int:
    """The value of an expression, its leaves given by `leaf`."""
    if isinstance(expr, int):
        return expr
    if isinstance(expr, Apply):
        return _OPS[expr.op](evaluate(expr.left, leaf), evaluate(expr.right, leaf))
    return leaf(expr)


def leaves(expr: Expr) -> Iterator[Attr | Size]:
    """The leaves of an expression, left to right."""
    if isinstance(expr, Apply):
        yield from leaves(expr.left)
        yield from leaves(expr.right)
    elif not isinstance(expr, int):
        yield expr
