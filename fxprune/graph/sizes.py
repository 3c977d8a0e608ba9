"""Sizes in a rewritten graph that follow the inputs: a batch, a number of tokens, a height.

Export made constants of them.  The expressions that were recorded meanwhile are evaluated again whenever the graph
runs: a constant that was O, and S after pruning, becomes S · E / O where its expression is now E, since pruning and
inputs change different factors of a size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.graph.equations import origin_of
from fxprune.graph.provenance import Attr, Call, Expr, Size, TracedInt, evaluate, expr_of, leaves
from fxprune.graph.trace import Traced

Path: TypeAlias = "tuple[int, int | None]"  # index of a node's argument, and the position in it if it is a list


@dataclass(frozen=True)
class Sized:
    """A constant of a node's arguments that an expression gave: where it stands, and what it was before pruning."""

    path: Path
    expr: Expr
    old: int


def sized(traced: Traced) -> dict[fx.Node, list[Sized]]:
    """The constants of every node that were computed from sizes of inputs or activations."""
    out: dict[fx.Node, list[Sized]] = {}
    for number, call in traced.recorder.calls.items():
        for node in traced.calls.get(number, ()):
            found = [s for s in _of_call(call, node) if _follows_inputs(traced, s.expr)]
            if found:
                out[node] = found
    return out


def _follows_inputs(traced: Traced, expr: Expr) -> bool:
    read = [x for x in leaves(expr) if isinstance(x, Size)]
    return any(x.origin[0] != "param" for x in read) and all(origin_of(traced, x) is not None for x in read)


def _of_call(call: Call, node: fx.Node) -> Iterator[Sized]:
    """A list of sizes is the call's where all numbers agree; a single number, where no other one is equal to it."""
    lists = list(_lists(call))
    numbers: dict[int, set[Expr]] = {}
    for x in pytree.tree_leaves((call.args, dict(call.kwargs)), is_leaf=lambda x: isinstance(x, slice)):
        for n in (x.start, x.stop) if isinstance(x, slice) else (x,):
            if isinstance(n, int):
                numbers.setdefault(int(n), set()).add(expr_of(n))
    for k, argument in enumerate(node.args):
        if isinstance(argument, (list, tuple)):
            given = next((g for g in lists if list(map(_number, g)) == list(argument)), ())
            yield from (Sized((k, j), n.expr, int(n)) for j, n in enumerate(given) if isinstance(n, TracedInt))
        elif type(argument) is int and len(found := numbers.get(argument, ())) == 1:
            yield Sized((k, None), next(iter(found)), argument)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, int) else value


def _lists(call: Call) -> Iterator[Sequence[Any]]:
    """Lists of numbers among a call's arguments; several numbers in a row count as one."""
    yield from (a for a in (*call.args, *call.kwargs.values()) if isinstance(a, (list, tuple)))
    yield [a for a in call.args if isinstance(a, int)]


@dataclass(frozen=True)
class Shapes:
    """The shapes that expressions read: `leaf[size]` is the node it is read from, and its size there after pruning."""

    leaf: Mapping[Size, tuple[fx.Node, int]]

    def read(self) -> frozenset[fx.Node]:
        """The nodes whose shapes are needed."""
        return frozenset(node for node, _ in self.leaf.values())

    def now(self, given: Sized, pruned: int, seen: Mapping[fx.Node, tuple[int, ...]]) -> int:
        """The value of a constant that pruning made `pruned`, given the shapes of nodes that ran already."""

        def leaf(x: Attr | Size) -> int:
            if isinstance(x, Attr):
                return x.old
            node, usual = self.leaf[x]
            size = seen[node][x.axis]
            return x.old if size == usual else size * x.old // usual

        value = evaluate(given.expr, leaf)
        return pruned if value == given.old else value if pruned == given.old else pruned * value // given.old


def put(args: list[Any], path: Path, value: int) -> None:
    """Replace the number at `path` of a node's arguments."""
    k, j = path
    if j is None:
        args[k] = value
    else:
        args[k] = [*args[k][:j], value, *args[k][j + 1 :]]


def shape_now(value: Any) -> tuple[int, ...]:
    """The shape of a node's value; nothing for what is no tensor."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()
