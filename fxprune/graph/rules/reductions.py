"""Reductions over channels.

sum, norm            contractions: what goes adds nothing
mean, var, max, ...  taken over what stays, as the statistics of a norm are; told in the report where they are no norm's
median, any, ...     these freeze
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.graph.labels import Axis, Ints
from fxprune.graph.rules.elementwise import elementwise
from fxprune.graph.rules.op import Labels, Op, Reduced, aten, is_tensor, op_name

_CASTS = {
    "aten::to",
    "aten::_to_copy",
    "aten::type_as",
    "aten::alias",
    "aten::detach",
    "aten::contiguous",
    "aten::clone",
}
_EXPANDS = {"aten::expand", "aten::expand_as", "aten::unsqueeze", "aten::squeeze", "aten::view", "aten::reshape"}
_SCALES = {"aten::div", "aten::rsqrt", "aten::sub", "aten::reciprocal", "aten::rsub"}
_REDUCES = {"aten::mean", "aten::sum", "aten::var", "aten::std", "aten::linalg_vector_norm", "aten::norm"}


def _pointwise(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    name = op_name(node.target)
    return name in _CASTS or (
        isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    )


def _origins(node: fx.Node, limit: int = 24) -> set[fx.Node]:
    """The node and what it was made from by element-wise ops."""
    seen: set[fx.Node] = set()
    todo = [node]
    while todo and len(seen) < limit:
        n = todo.pop()
        if n in seen or not is_tensor(n):
            continue
        seen.add(n)
        if _pointwise(n) or (n.op == "call_function" and op_name(n.target) in _REDUCES):
            todo += n.all_input_nodes
    return seen


def is_statistic(node: fx.Node) -> bool:
    """Whether a reduced value comes back onto the very tensor it was taken from, to centre or to scale it."""
    origins = {n for n in _origins(node.all_input_nodes[0]) if n.op != "placeholder" or len(n.meta["val"].shape) > 1}
    seen: set[fx.Node] = set()
    todo: list[tuple[fx.Node, bool]] = [(node, False)]
    while todo and len(seen) < 40:
        n, scales = todo.pop()
        for user in n.users:
            if user in seen or user.op != "call_function":
                continue
            name = op_name(user.target)
            others = [i for i in user.all_input_nodes if i is not n and is_tensor(i)]
            back = any(o in origins or _origins(o) & origins for o in others)
            if back and name in ("aten::div", "aten::sub", "aten::rsub"):
                return True
            if back and name == "aten::mul" and scales:
                return True
            if _pointwise(user) or name in _EXPANDS:
                seen.add(user)
                todo.append((user, scales or name in _SCALES))
    return False


def _dims(op: Op, rank: int) -> list[int]:
    dims = op.arg("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return [d % rank for d in ([dims] if isinstance(dims, int) else dims)]


def _reduced(op: Op, labels: Labels, dims: list[int]) -> Labels:
    keep = bool(op.arg("keepdim", False))
    out: list[Axis] = []
    for d, axis in enumerate(labels):
        if d not in dims:
            out.append(axis)
        elif keep:
            out.append(None)
    return tuple(out)


_ADDS = {"aten::sum", "aten::linalg_vector_norm", "aten::norm", "aten::nansum"}
_OVER_WHAT_STAYS = {
    f"aten::{n}" for n in ["mean", "var", "std", "var_mean", "std_mean", "logsumexp", "prod", "aminmax"]
}
_OVER_WHAT_STAYS |= {f"aten::{n}" for n in ["amax", "amin", "max", "min"]}


def _adds(op: Op, name: str) -> bool:
    """Whether zeros in place of what goes leave the result as it is."""
    order = op.arg("ord", op.arg("p", 2))
    return name in _ADDS and (order is None or (isinstance(order, (int, float)) and order >= 0))


def tells_where(node: fx.Node) -> bool:
    """Whether the second result of a maximum or a ranking, its places, is used."""
    return any(op_name(u.target) != "python::getitem" or (u.args[1] != 0 and u.users) for u in node.users)


@aten(
    "mean sum var std var_mean std_mean linalg_vector_norm norm amax amin aminmax logsumexp prod any all max min "
    "median nansum"
)
def reduce(op: Op) -> Any:
    node = op.node.all_input_nodes[0]
    if len(op.node.all_input_nodes) > 1:  # max(a, b)
        return elementwise(op)
    labels = op.labels(node)
    dims = _dims(op, len(labels))
    name = op_name(op.node.target)
    live = tuple(d for d in dims if labels[d] is not None)
    several = isinstance(op.out, (tuple, list))
    if live and name in _REDUCES and is_statistic(op.node):
        op.facts.statistics[op.name] = live
    elif _adds(op, name):
        for d in live:
            op.reads(node, d)
    elif name in _OVER_WHAT_STAYS and not (several and name in ("aten::max", "aten::min") and tells_where(op.node)):
        if live:
            op.facts.statistics[op.name] = live
            if op.read:
                op.facts.reduced += [Reduced(op.name, axis) for d in live if (axis := labels[d]) is not None]
    else:
        for d in live:
            op.freeze(labels[d], "is reduced to one value", cause="reduction over channels")
    out = _reduced(op, labels, dims)
    return [out] * len(op.out) if several else out


@aten("quantile nanquantile trapezoid trapz")
def by_order(op: Op) -> Labels:
    """What hangs on the order or the places along `dim`: that axis stays, the others pass."""
    labels, dim = op.labels(op.node.all_input_nodes[0]), op.arg("dim")
    if dim is None or len(op.node.all_input_nodes) > 1:
        return op.freeze_all("is reduced to one value", cause="reduction over channels")  # type: ignore[no-any-return]
    d = int(dim) % max(1, len(labels))
    op.freeze(labels[d], "is reduced to one value", cause="reduction over channels")
    return _reduced(op, labels, [d])


@aten(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "max_pool2d_with_indices max_pool3d_with_indices lp_pool2d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa max_unpool2d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d grid_sampler grid_sampler_2d"
)
def spatial(op: Op) -> Any:
    """Pools, resizes and pads of space: batch and channel axes pass, the others stay."""
    labels = op.labels(op.node.all_input_nodes[0])
    name = op_name(op.node.target)
    rank = next((k for k in (1, 2, 3) if f"{k}d" in name), 2)
    for axis in labels[len(labels) - rank :]:
        op.freeze(axis, "is a spatial axis", cause="spatial axis")
    out = (*labels[: len(labels) - rank], *(None for _ in range(rank)))
    return [out] * len(op.out) if isinstance(op.out, (tuple, list)) else out


_CONTRACTS = {f"aten::{n}" for n in ["linear", "addmm", "mm", "matmul", "bmm", "einsum", "conv1d", "conv2d", "conv3d"]}
_PASSES = _EXPANDS | {f"aten::{n}" for n in ["flatten", "permute", "transpose", "dropout"]}


def _made_by_a_layer(op: Op, axis: Ints) -> bool:
    """Whether a layer's weight makes the positions of an axis: they are channels, no tokens and no positions."""
    node = op.node.all_input_nodes[0]
    while node.op == "call_function" and (op_name(node.target) in _PASSES or _pointwise(node)):
        node = next((n for n in node.all_input_nodes if is_tensor(n)), node.all_input_nodes[0])
    if node.op != "call_function" or op_name(node.target) not in _CONTRACTS:
        return False
    weights = [n for n in node.all_input_nodes if n.op == "placeholder" and len(op.env[n]) > 1]
    return any(a is not None and bool(np.isin(axis, a).all()) for n in weights for a in op.env[n])


@aten("softmax _softmax log_softmax _log_softmax")
def softmax(op: Op) -> Labels:
    """Over what stays where a layer makes the channels that it is taken over; over all else it mixes positions."""
    labels = list(op.labels("self"))
    d = int(op.arg("dim")) % max(1, len(labels))
    axis = labels[d] if labels else None
    if axis is not None and _made_by_a_layer(op, axis):
        op.facts.statistics[op.name] = (d,)
        if op.read:
            op.facts.reduced.append(Reduced(op.name, axis))
    elif labels:
        op.freeze(axis, "mixes positions along the axis", cause="mixes along the axis")
        labels[d] = None
    return tuple(labels)
