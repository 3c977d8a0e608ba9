"""What the model's own Python needs to hold: sizes it computes must equal the sizes that pruning leaves.

Every integer that reached a shape argument while the model was traced gives an `Equation`: its expression must, after
pruning, evaluate to the number of positions that stay on an axis.  Before planning, equations couple axes (two axes
whose size is read from one integer must shrink alike); after it, they are solved for the module's attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.graph.labels import Axis, Bools, LabelSpace
from fxprune.graph.provenance import Apply, Attr, Expr, Size, TracedInt, expr_of
from fxprune.graph.rules.op import op_name, shape_of
from fxprune.graph.rules.pieces import SPLITS, split_axis
from fxprune.graph.trace import Traced

AxisOf = Callable[[Size], "Axis"]
_METHODS = {"view", "reshape", "expand", "new_zeros", "new_ones", "new_full", "new_empty", "broadcast_to"}
_SIZED = _METHODS | {"zeros", "ones", "full", "empty", "randn", "rand"}


@dataclass(frozen=True)
class Equation:
    """`expr` was `old`; after pruning it must be the number of labels of `axis` that stay (`old` where axis is None).

    `groups` names a group-norm or convolution node instead, whose number of groups it must be.  Where `expr` is a plain
    integer, its origin is unknown: it may stand in the source, or have lost its trace.
    """

    expr: Expr
    axis: Axis
    old: int
    node: str
    groups: bool = False


def _sizes(values: Any) -> list[Any]:
    flat = list(values)
    if len(flat) == 1 and isinstance(flat[0], (tuple, list)):
        flat = list(flat[0])
    return flat


def _ints(values: list[Any]) -> bool:
    """Whether all are sizes; one that depends on data says nothing itself, and the others do."""
    return all(isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in values)


def call_equations(traced: Traced, env: dict[fx.Node, Any]) -> Iterator[list[Equation]]:
    """The equations of every recorded call, a list a call."""
    for number, call in traced.recorder.calls.items():
        nodes = [n for n in traced.calls.get(number, []) if "_assert" not in n.name]
        if nodes:
            yield list(_of_call(call.name, call.args, dict(call.kwargs), nodes, env))


def _axes(node: fx.Node, env: dict[fx.Node, Any]) -> tuple[Axis, ...]:
    labels = env.get(node)
    return labels if isinstance(labels, tuple) else ()


def _of_call(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], nodes: list[fx.Node], env: dict[fx.Node, Any]
) -> Iterator[Equation]:
    last = nodes[-1]

    def aligned(sizes: list[Any], axes: tuple[Axis, ...], node: fx.Node) -> Iterator[Equation]:
        for value, axis in zip(sizes, axes, strict=True):
            known = isinstance(value, int) and (axis is not None and value > 1)
            if isinstance(value, TracedInt) or known:
                yield Equation(expr_of(value), axis, int(value), node.name)

    if name in _SIZED:
        sizes = _sizes(args[1:] if name in _METHODS else args) or _sizes([kwargs.get("shape", kwargs.get("size", ()))])
        if name in ("new_full", "full"):
            sizes = _sizes([sizes[0]]) if sizes else []
        axes = _axes(last, env)
        if len(sizes) == len(axes) and _ints(sizes):
            yield from aligned(sizes, axes, last)
    elif name == "unflatten":
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        sizes = _sizes([args[2] if len(args) > 2 else kwargs["sizes"]])
        axes = _axes(last, env)
        start = int(dim) % (len(axes) - len(sizes) + 1)
        if _ints(sizes):
            yield from aligned(sizes, axes[start : start + len(sizes)], last)
    elif name in ("split", "split_with_sizes"):
        given = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size"))
        dim = int(args[2] if len(args) > 2 else kwargs.get("dim", 0))
        yield from _split(given, dim, nodes, env)
    elif name in ("tensor_split", "hsplit", "vsplit", "dsplit"):
        given = next((a for a in (*args[1:], *kwargs.values()) if isinstance(a, (tuple, list))), ())
        yield from _borders(list(given), nodes, env)
    elif name == "__getitem__":
        yield from _slices(args, nodes, env)
    elif name == "narrow":
        yield from _narrow(args, kwargs, nodes, env)
    elif name in ("layer_norm", "rms_norm"):
        shape = _sizes([args[1] if len(args) > 1 else kwargs["normalized_shape"]])
        axes = _axes(last, env)
        if _ints(shape):
            yield from aligned(shape, axes[len(axes) - len(shape) :], last)
    elif name == "group_norm" or name.startswith("conv"):
        at = 1 if name == "group_norm" else 6
        value = args[at] if len(args) > at else kwargs.get("num_groups" if name == "group_norm" else "groups")
        if isinstance(value, TracedInt):
            yield Equation(value.expr, None, int(value), last.name, groups=True)


def _split(given: Any, dim: int, nodes: list[fx.Node], env: dict[fx.Node, Any]) -> Iterator[Equation]:
    pieces = next((env[n] for n in nodes if isinstance(env.get(n), list)), None)
    if pieces is None or not pieces:
        return
    sizes = list(given) if isinstance(given, (tuple, list)) else [given] * len(pieces)
    for value, labels in zip(sizes, pieces, strict=False):
        axis = None if labels is None else labels[dim]
        if isinstance(value, int) and (isinstance(value, TracedInt) if axis is None else len(axis) == value):
            yield Equation(expr_of(value), axis, int(value), nodes[0].name)


def _borders(given: list[Any], nodes: list[fx.Node], env: dict[fx.Node, Any]) -> Iterator[Equation]:
    """Borders of pieces along one axis."""
    node = next((n for n in nodes if op_name(n.target) in SPLITS), None)
    axis = None if node is None else _axes(node.args[0], env)[split_axis(node)]  # type: ignore[arg-type]
    for border in given:
        if node is not None and isinstance(border, int) and not isinstance(border, bool) and axis is not None:
            yield from _border(border, axis, node)


def _border(border: int, axis: Axis, node: fx.Node) -> Iterator[Equation]:
    """What lies before a border (after it, for one that counts from the end)."""
    if axis is None:
        if isinstance(border, TracedInt) and border > 0:
            yield Equation(border.expr, None, int(border), node.name)
    elif 0 < border < len(axis) or (isinstance(border, TracedInt) and border == len(axis)):
        yield Equation(expr_of(border), axis[: int(border)], int(border), node.name)
    elif -len(axis) < border < 0:
        expr = Apply("-", 0, border.expr) if isinstance(border, TracedInt) else -int(border)
        yield Equation(expr, axis[int(border) :], -int(border), node.name)


def _slices(args: tuple[Any, ...], nodes: list[fx.Node], env: dict[fx.Node, Any]) -> Iterator[Equation]:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    borders = [
        b for s in index if isinstance(s, slice) for b in (s.start, s.stop) if isinstance(b, int) and b not in (0, None)
    ]
    for border in borders:
        for n in nodes:
            if op_name(n.target) != "aten::slice" or int(border) not in [a for a in n.args[2:4] if isinstance(a, int)]:
                continue
            source = n.args[0]
            dim = n.args[1] if len(n.args) > 1 else 0
            step = n.args[4] if len(n.args) > 4 else 1
            if isinstance(source, fx.Node) and isinstance(dim, int):
                if isinstance(step, int) and int(border) % step == 0:  # else it starts within a run, as all runs do
                    yield from _border(border, _axes(source, env)[dim], n)
                break


def _narrow(
    args: tuple[Any, ...], kwargs: dict[str, Any], nodes: list[fx.Node], env: dict[fx.Node, Any]
) -> Iterator[Equation]:
    named = dict(zip(("dim", "start", "length"), args[1:], strict=False)) | kwargs
    node = next((n for n in nodes if op_name(n.target) == "aten::narrow"), None)
    start, length = named.get("start"), named.get("length")
    if node is None or not isinstance(start, int) or not isinstance(length, int):
        return
    axis = _axes(node.args[0], env)[int(named["dim"])]  # type: ignore[arg-type]
    if axis is not None:
        yield from _border(start, axis, node)
        yield Equation(expr_of(length), axis[int(start) % len(axis) :][: int(length)], int(length), node.name)


def origin_of(traced: Traced, size: Size) -> fx.Node | None:
    """The node that a size was read from."""
    kind, key = size.origin
    if kind == "call":
        number, k, shape = key
        nodes = [n for n in traced.calls.get(number, []) if isinstance(n.meta.get("val"), torch.Tensor)]
        picked = [n for n in nodes if op_name(n.target) == "python::getitem" and n.args[1] == k]
        fits = [n for n in (picked or nodes) if shape_of(n) == shape]
        return fits[-1] if fits else None
    names = traced.inputs[key : key + 1] if kind == "input" else [p for p, n in traced.tensors.items() if n == key]
    found = (n for n in traced.graph.nodes if n.op == "placeholder" and n.name in names)
    return next((n for n in found if shape_of(n)[size.axis : size.axis + 1] == (size.old,)), None)


def locate(
    traced: Traced, env: dict[fx.Node, Any], tensors: dict[str, tuple[Axis, ...]], canonical: dict[str, str]
) -> AxisOf:
    """A function from a `Size` leaf to the labels of its axis (None: fixed, or unknown)."""

    def axis_of(size: Size) -> Axis:
        kind, key = size.origin
        if kind == "param":
            axes = tensors.get(canonical.get(key, key))
            return axes[size.axis] if axes else None
        node = origin_of(traced, size) if kind == "call" else None
        labels = None if node is None else env.get(node)
        return labels[size.axis] if isinstance(labels, tuple) else None

    return axis_of


def couple(
    space: LabelSpace,
    read: Bools,
    equations: list[list[Equation]],
    equalities: list[tuple[Expr, Expr]],
    axis_of: AxisOf,
) -> None:
    """Tie what the model's Python needs to be alike; `read` says which labels a contraction reads (a stream's are).

    - a size read from another tensor's axis: the two axes shrink alike;
    - sizes read from one attribute: all of them shrink alike;
    - a and E // a side by side: together they are the factors of the axis that E was read from;
    - integers that were compared and found equal.
    """
    by_attr: dict[Attr, list[tuple[Axis, int, str]]] = {}
    for call in equations:
        for eq in call:
            if eq.groups:
                continue
            if isinstance(eq.expr, Size):
                _alike(space, read, axis_of(eq.expr), eq.axis, eq.node)
            elif isinstance(eq.expr, Attr):
                by_attr.setdefault(eq.expr, []).append((eq.axis, eq.old, eq.node))
        for eq in call:
            _factors(space, read, eq, call, axis_of)
    for a, b in equalities:
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Attr) and isinstance(y, Size):
                axis = axis_of(y)
                by_attr.setdefault(x, []).append((axis, 0 if axis is None else len(axis), "a comparison"))
        if isinstance(a, Size) and isinstance(b, Size):
            _alike(space, read, axis_of(a), axis_of(b), "a comparison")
    for a, b in equalities:
        if isinstance(a, Attr) and isinstance(b, Attr) and a in by_attr and b in by_attr:
            by_attr[a] += by_attr[b]
    for uses in by_attr.values():
        first = uses[0][0]
        for axis, _, node in uses[1:]:
            _alike(space, read, first, axis, node)


def _alike(space: LabelSpace, read: Bools, a: Axis, b: Axis, node: str) -> None:
    if a is None and b is None:
        return
    if a is None or b is None:
        space.tie(a, b, node)
    elif len(a) == len(b) and not _same_axis(a, b) and not _same_factors(space, a, b):
        space.tie(a, b, node)
        for i, s in enumerate(space.splits):
            for parent, other in ((a, b), (b, a)):
                if _same_axis(s.parent, parent) and read[other].any():
                    space.splits[i] = replace(s, streamed=True)


def _same_axis(a: Axis, b: Axis) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _factors_of(space: LabelSpace, axis: Axis) -> list[frozenset[tuple[int, ...]]]:
    return [
        frozenset(tuple(f.tolist()) for f in s.factors if f is not None)
        for s in space.splits
        if _same_axis(s.parent, axis)
    ]


def _same_factors(space: LabelSpace, a: Axis, b: Axis) -> bool:
    """Whether two axes are products of the same factors: then they shrink alike by themselves."""
    return bool(set(_factors_of(space, a)) & set(_factors_of(space, b)))


def _factors(space: LabelSpace, read: Bools, eq: Equation, call: list[Equation], axis_of: AxisOf) -> None:
    """`view(..., a, E // a)`: E's axis is the product of the two."""
    e = eq.expr
    if not (isinstance(e, Apply) and e.op == "//" and isinstance(e.left, Size)):
        return
    parent = axis_of(e.left)
    other = next((q for q in call if q.expr == e.right), None)
    if parent is None or other is None or len(parent) != eq.old * other.old:
        return
    ordered = (other, eq) if call.index(other) < call.index(eq) else (eq, other)
    sizes = (ordered[0].old, ordered[1].old)
    factors = (ordered[0].axis, ordered[1].axis)
    for s in space.splits:
        if np.array_equal(s.parent, parent) and all(map(_same_axis, s.factors, factors)):
            return
    merged = space.merge(factors, sizes, eq.node, streamed=bool(read[parent].any()))
    space.tie(merged, parent, eq.node)


def render(expr: Expr) -> str:
    """An expression as one would write it."""
    if isinstance(expr, Apply):
        return f"({render(expr.left)} {expr.op} {render(expr.right)})"
    return f"size {expr.axis} of a tensor of {expr.origin[0]}" if isinstance(expr, Size) else str(expr)
