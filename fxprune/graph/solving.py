"""Equations solved for the attributes of modules: what each integer must become once channels are gone."""

from __future__ import annotations

from collections.abc import Callable

from fxprune.graph.equations import AxisOf, Equation, render
from fxprune.graph.labels import Axis
from fxprune.graph.provenance import Apply, Attr, Expr, Size, evaluate, leaves


class Unsolved(Exception):
    """The equations have no solution; the message names the attribute, `equation` is one that fails."""

    def __init__(self, message: str, equation: Equation) -> None:
        super().__init__(message)
        self.equation = equation


NewOf = Callable[[Equation], int]
KeptOf = Callable[[Axis, int], int]


def solve(equations: list[Equation], new_of: NewOf, axis_of: AxisOf, kept: KeptOf) -> dict[Attr, int]:
    """New values of attributes such that every equation holds; attributes left out keep theirs.

    Args:
        new_of: the value that an equation's expression must take.
        kept: how many positions of an axis stay, given its old size.

    Raises:
        Unsolved: naming the attribute that would need two values, or the expression that cannot be met.
    """
    values: dict[Attr, int] = {}

    def leaf(x: Attr | Size) -> int:
        return values.get(x, x.old) if isinstance(x, Attr) else kept(axis_of(x), x.old)

    for eq in equations:
        if isinstance(eq.expr, Attr):
            new = new_of(eq)
            if values.setdefault(eq.expr, new) != new:
                raise Unsolved(f"{eq.expr} would have to be both {values[eq.expr]} and {new} (at {eq.node})", eq)
    rest = [eq for eq in equations if not isinstance(eq.expr, Attr)]
    for _ in range(8):
        wrong = [eq for eq in rest if evaluate(eq.expr, leaf) != new_of(eq)]
        if not wrong:
            return values
        for eq in wrong:
            unknown = [x for x in leaves(eq.expr) if isinstance(x, Attr) and x not in values]
            if len(unknown) == 1 and (found := _invert(eq.expr, unknown[0], new_of(eq), leaf)) is not None:
                values[unknown[0]] = found
    eq = wrong[0]
    raise Unsolved(
        f"{render(eq.expr)} would be {evaluate(eq.expr, leaf)}, but {new_of(eq)} is needed (at {eq.node})", eq
    )


def _invert(expr: Expr, unknown: Attr, target: int, leaf: Callable[[Attr | Size], int]) -> int | None:
    """The value of `unknown` for which `expr` is `target`, or None."""
    if expr == unknown:
        return target if target > 0 else None
    if not isinstance(expr, Apply):
        return None
    on_left = unknown in set(leaves(expr.left))
    other = evaluate(expr.right if on_left else expr.left, leaf)
    new: int | None = None
    if expr.op == "*" and other and target % other == 0:
        new = target // other
    elif expr.op == "+":
        new = target - other
    elif expr.op == "-":
        new = target + other if on_left else other - target
    elif expr.op == "//":
        new = target * other if on_left else (other // target if target and other % target == 0 else None)
    return None if new is None else _invert(expr.left if on_left else expr.right, unknown, new, leaf)
