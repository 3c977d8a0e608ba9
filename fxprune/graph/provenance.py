"""Integers that remember where they came from.

`torch.export` turns `x.view(b, n, self.num_heads, c // self.num_heads)` into constants.  To bring a module's own
attributes along after pruning one has to know that the third number was `num_heads`, and the fourth was made from a
size of another tensor.  So while the model is exported, its integer attributes and the sizes of its tensors are
`TracedInt`s: integers that carry the expression that made them.  A torch-function mode records, for every call with
such an argument, the expressions, and marks the fx nodes that the call created with the number of the call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Attr:
    """Leaf: the integer `old`, which is attribute `name` of the module at `path`, or its item `index`.

    `holder` is the attribute of the module that holds the object which has it (`config`, say; see `holders_of`).
    """

    path: str
    name: str
    old: int
    index: int | None = None
    holder: str = ""

    def __str__(self) -> str:
        where = f"{self.path}." if self.path else ""
        item = "" if self.index is None else f"[{self.index}]"
        return f"{where}{self.within}{item}"

    @property
    def within(self) -> str:
        """The name from the module on."""
        return f"{self.holder}.{self.name}" if self.holder else self.name


def holders_of(module: nn.Module) -> dict[str, Any]:
    """The plain objects (a config, a dataclass, a dict) that a module holds and that keep its numbers, by attribute."""
    return {k: v for k, v in module.__dict__.items() if not k.startswith("_") and (type(v) is dict or _is_plain(v))}


def fields_of(holder: Any) -> dict[Any, Any]:
    """What such an object holds, to be read and written."""
    found: dict[Any, Any] = holder if type(holder) is dict else holder.__dict__
    return found


def _is_plain(value: Any) -> bool:
    if not hasattr(value, "__dict__") or isinstance(value, (nn.Module, torch.Tensor, type, Mapping)):
        return False
    library = type(value).__module__.partition(".")[0] in ("torch", "numpy", "functools", "builtins", "weakref")
    return not library and not callable(value)


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


def _bare(value: Any) -> Any:
    """A traced integer as a plain one, unrecorded; anything else as it is."""
    return int.__int__(value) if isinstance(value, TracedInt) else value


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
            pair: Any = (other, _bare(self)) if swap else (_bare(self), other)
            return _OPS[op](*pair)
        if type(other) is not int and not isinstance(other, TracedInt):
            return NotImplemented
        a, b = (other, self) if swap else (self, other)
        value = _OPS[op](_bare(a), _bare(b))
        if value == _bare(self) and _bare(other) == (1 if op in ("*", "//") else 0) and type(other) is int:
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

    def __int__(self) -> int:
        self.recorder.lose(self.expr)
        return int.__int__(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """numpy computes with the number (`np.sqrt(c)`)."""
        for x in inputs:
            if isinstance(x, TracedInt):
                self.recorder.number(x.expr)
        return getattr(ufunc, method)(*map(_bare, inputs), **kwargs)

    def __float__(self) -> float:
        return float(self._number(_bare(self)))

    def __truediv__(self, o: Any) -> Any:
        return self._number(_bare(self) / o)

    def __rtruediv__(self, o: Any) -> Any:
        return self._number(o / _bare(self))

    def __pow__(self, o: Any, modulus: Any = None) -> Any:
        return self._number(pow(_bare(self), o, modulus))

    def __rpow__(self, o: Any, modulus: Any = None) -> Any:
        return self._number(pow(o, _bare(self), modulus))

    def __lt__(self, o: Any) -> Any:
        return _bare(self) < _bare(o)

    def __le__(self, o: Any) -> Any:
        return _bare(self) <= _bare(o)

    def __gt__(self, o: Any) -> Any:
        return _bare(self) > _bare(o)

    def __ge__(self, o: Any) -> Any:
        return _bare(self) >= _bare(o)

    def __eq__(self, o: object) -> bool:
        if isinstance(o, torch.SymInt):
            return bool(o == _bare(self))
        same = int.__eq__(self, o)
        if same is True and isinstance(o, TracedInt):
            self.recorder.equal(self.expr, o.expr)
        return same

    def __ne__(self, o: object) -> bool:
        return not self == o

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __reduce__(self) -> Any:
        return (int, (_bare(self),))

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int.__int__(self)


def expr_of(value: Any) -> Expr:
    """The expression of an integer (a plain one stands for itself)."""
    return value.expr if isinstance(value, TracedInt) else int(value)


def plain(value: Any) -> Any:
    """`value` with every `TracedInt` in it made an `int`."""

    def one(x: Any) -> Any:
        if isinstance(x, TracedInt):
            return _bare(x)
        if isinstance(x, slice):
            return slice(one(x.start), one(x.stop), one(x.step))
        if isinstance(x, torch.Size):
            return torch.Size([_bare(i) for i in x])
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
    """What was seen while the model ran: calls by number, pairs of expressions found equal, expressions whose value
    went into a computation as a number (a temperature, say), and those that `int()` lost sight of.

    The origin of a tensor is `("param", name)`, `("input", k)` or `("call", (number, output index, shape))`.

    Attributes:
        digest: of all calls with their arguments, in order: equal where two runs made the same ones.
        strange: tensors of no known origin that calls were given; None: these are not held.
        copies: numbers of the calls of `contiguous` that gave another tensor.
        like: what is recorded again: such a call gives another tensor here where it did there.
    """

    calls: dict[int, Call] = field(default_factory=dict)
    equalities: list[tuple[Expr, Expr]] = field(default_factory=list)
    numbers: list[Expr] = field(default_factory=list)
    lost: list[Expr] = field(default_factory=list)
    count: int = 0
    active: bool = False
    digest: int = 0
    strange: list[torch.Tensor] | None = None
    copies: set[int] = field(default_factory=set)
    like: Recorder | None = None

    def note(self, *call: Any) -> None:
        """Take a call into the digest."""
        self.digest = hash((self.digest, *call))

    def unknown(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        """What is known of a tensor without an origin."""
        if self.strange is not None:
            self.strange.append(tensor)
        sizes: tuple[Any, ...] = tuple(tensor.shape)
        shape = tuple(None if isinstance(s, torch.SymInt) else int(s) for s in sizes)  # None: it depends on data
        return "unknown", shape, tensor.dtype

    def copied(self, number: int, given: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What `contiguous` gives: strides of tensors without values may be others than a kernel makes."""
        new = out is not given if self.like is None else number in self.like.copies
        if new:
            self.copies.add(number)
        if new and out is given:
            return out.detach()
        if not new and out is not given and hasattr(given, "_fxprune_origin"):
            out._fxprune_origin = given._fxprune_origin  # type: ignore[attr-defined]
        return out

    def same(self, other: Recorder) -> bool:
        """Whether two runs made the same calls, with integers of the same origins."""
        mine = self.digest, self.equalities, self.numbers, self.lost
        return mine == (other.digest, other.equalities, other.numbers, other.lost)

    def equal(self, a: Expr, b: Expr) -> None:
        if self.active and a != b:
            self.equalities.append((a, b))

    def lose(self, expr: Expr) -> None:
        if self.active:
            self.lost.append(expr)

    def number(self, expr: Expr) -> None:
        if self.active:
            self.numbers.append(expr)


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
