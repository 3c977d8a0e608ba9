"""Indexing: an axis that is indexed by values stays, the others pass."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.graph.labels import Axis
from fxprune.graph.rules.elementwise import broadcast
from fxprune.graph.rules.op import Labels, Op, Reduced, aten, coupling, is_tensor, op_name
from fxprune.graph.rules.reductions import tells_where


@aten("unbind")
def unbind(op: Op) -> list[Labels]:
    return [_without(op, int(op.arg("dim", 0)))] * len(op.out)


@aten("select")
def select(op: Op) -> Labels:
    return _without(op, int(op.arg("dim", 0)))


def _without(op: Op, d: int) -> Labels:
    labels = op.labels("self")
    d %= len(labels)
    op.freeze(labels[d], "is picked out by position", cause="indexed by value")
    return (*labels[:d], *labels[d + 1 :])


@aten("index _unsafe_index index_put _unsafe_index_put")
def index(op: Op) -> Labels:
    """`x[i, :, j]`: axes with an index tensor stay; where the index stands, its own axes come in.

    A mask of bools covers as many axes as it has, and gives one.
    """
    labels = op.labels("self")
    covered = _covered(op)
    given = sorted(covered)
    for k in given:
        op.freeze(labels[k], "is indexed by value", cause="indexed by value")
    for n in dict.fromkeys(n for n in covered.values() if _is_mask(n)):
        for axis in op.labels(n):
            op.freeze(axis, "is picked by a mask", cause="indexed by value")
    nodes = list(dict.fromkeys(covered.values()))
    rank = max(1 if _is_mask(n) else len(op.shape(n)) for n in nodes)
    together = given[-1] - given[0] + 1 == len(given)
    at = given[0] if together else 0
    if op.tensor("values") is not None:
        return _written(op, labels, covered, at, rank)
    picked: Labels = (None,) * rank
    if any(map(_is_mask, nodes)):
        for axis in (a for n in nodes if not _is_mask(n) for a in op.labels(n)):
            op.freeze(axis, "is picked beside a mask", cause="indexed by value")
    else:
        picked = broadcast(
            op, [op.labels(n) for n in nodes], [op.shape(n) for n in nodes], op.out_shape[at : at + rank]
        )
    rest = [a for k, a in enumerate(labels) if k not in covered]
    return (*rest[:at], *picked, *rest[at:])


def _is_mask(node: Any) -> bool:
    return is_tensor(node) and node.meta["val"].dtype in (torch.bool, torch.uint8)


def _covered(op: Op) -> dict[int, fx.Node]:
    """The axes that indices stand for, each with its index."""
    out: dict[int, fx.Node] = {}
    k = 0
    for n in op.arg("indices"):
        width = len(op.shape(n)) if _is_mask(n) else 1
        if n is not None:
            out.update(dict.fromkeys(range(k, k + width), n))
        k += width
    return out


def _written(op: Op, labels: Labels, covered: Collection[int], at: int, rank: int) -> Labels:
    """`x[i] = values`: axes that no index stands for are those of the values, which line up with `x[i]` from the right.

    Args:
        at: where the `rank` axes of the index stand in `x[i]`.
    """
    values, shape, sizes = op.labels("values"), op.shape("values"), op.shape("self")
    rest = [k for k in range(len(labels)) if k not in covered]
    picked: list[int | None] = [*rest[:at], *[None] * rank, *rest[at:]]
    for axis, size, k in zip(reversed(values), reversed(shape), reversed(picked), strict=False):
        if k is None:
            op.freeze(axis, "is written by index", cause="indexed by value")
        else:
            broadcast(op, [(labels[k],), (axis,)], [(sizes[k],), (size,)], (sizes[k],))
    return tuple(None if k in covered else a for k, a in enumerate(labels))


@aten("index_select")
def index_select(op: Op) -> Labels:
    labels = op.labels("self")
    d = int(op.arg("dim")) % len(labels)
    op.freeze(labels[d], "is indexed by value", cause="indexed by value")
    return (*labels[:d], op.labels("index")[0] if op.labels("index") else None, *labels[d + 1 :])


@aten("gather")
def gather(op: Op) -> Labels:
    """out[i, j, k] = x[i, index[i, j, k], k]: the axis `dim` is looked up, the others are equal to the index's.

    Of an axis that the index covers in part, only the first positions are read: it stays.
    """
    index = op.labels("index")
    d = int(op.arg("dim")) % max(1, len(index))
    joint = _alongside(op, d, "self", "index")
    return tuple(index[d] if k == d else a for k, a in enumerate(joint))


@aten("take_along_dim")
def take_along_dim(op: Op) -> Labels:
    """As `gather`, where no axis is broadcast."""
    dim, x, index = op.arg("dim"), op.shape("self"), op.shape("indices")
    d = 0 if dim is None else int(dim) % max(1, len(x))
    if (
        dim is None
        or len(x) != len(index)
        or any(a != b for k, (a, b) in enumerate(zip(x, index, strict=True)) if k != d)
    ):
        return op.freeze_all("is indexed by value", cause="indexed by value")  # type: ignore[no-any-return]
    joint = _alongside(op, d, "self", "indices")
    return tuple(op.labels("indices")[d] if k == d else a for k, a in enumerate(joint))


@aten("scatter scatter_add scatter_reduce")
def scatter(op: Op) -> Labels:
    """out[i, index[i, j, k], k] += src[i, j, k]: the axis `dim` is written by value, the others are equal."""
    d = int(op.arg("dim")) % max(1, len(op.labels("self")))
    given = ["self", "index", *(["src"] if op.tensor("src") is not None else [])]
    return tuple(None if k == d else a for k, a in enumerate(_alongside(op, d, *given)))


@aten("index_add index_copy index_reduce index_fill")
def index_add(op: Op) -> Labels:
    """out[:, index[j]] += source[:, j]: the axis `dim` is written by value, the others are equal."""
    labels = list(op.labels("self"))
    d = int(op.arg("dim")) % max(1, len(labels))
    source = op.labels("source") if op.tensor("source") is not None else tuple(labels)
    if len(source) != len(labels):
        return op.freeze_all("is indexed by value", cause="indexed by value")  # type: ignore[no-any-return]
    for axis in (labels[d], source[d], *op.labels("index")):
        op.freeze(axis, "is indexed by value", cause="indexed by value")
    return tuple(None if k == d else op.tie(a, b) for k, (a, b) in enumerate(zip(labels, source, strict=True)))


@aten("slice_scatter select_scatter")
def slice_scatter(op: Op) -> Labels:
    """out = self, with src at some places of the axis `dim`; the others are equal."""
    labels, source = list(op.labels("self")), list(op.labels("src"))
    d = int(op.arg("dim", 0)) % len(labels)
    if len(source) < len(labels):
        source.insert(d, None)
    for axis in (labels[d], source[d]):
        op.freeze(axis, "is written by place", cause="indexed by value")
    return tuple(None if k == d else op.tie(a, b) for k, (a, b) in enumerate(zip(labels, source, strict=True)))


def _alongside(op: Op, d: int, *names: str) -> list[Axis]:
    """The joint axes of tensors that are read side by side but for `d`, where one holds positions of another.

    Of an axis that one of them covers in part only the first positions are read: it stays.
    """
    out: list[Axis] = []
    for k in range(len(op.labels(names[0]))):
        axes = [op.labels(n)[k] for n in names]
        if k != d and len({op.shape(n)[k] for n in names}) == 1:
            out.append(functools.reduce(op.tie, axes))
            continue
        for axis in axes:
            op.freeze(axis, "is indexed by value" if k == d else "covers an axis in part", cause="indexed by value")
        out.append(None)
    return out


@aten("topk kthvalue mode")
def ranked(op: Op) -> list[Labels]:
    """The largest along `dim`, and where they stood: that axis stays, the others pass.

    Where nobody asks where they stood, the largest k are those of what stays, as long as k do.
    """
    labels = op.labels("self")
    d = int(op.arg("dim", -1)) % max(1, len(labels))
    axis = labels[d] if labels else None
    if axis is not None and op_name(op.node.target) == "aten::topk" and not tells_where(op.node):
        op.facts.statistics[op.name] = (d,)
        op.facts.reduced.append(Reduced(op.name, axis))
        op.facts.least.append((axis, int(op.arg("k"))))
    else:
        op.freeze(axis, "is ranked by value", cause="indexed by value")
    same = len(op.out[0].shape) == len(labels)
    return [(*labels[:d], *((None,) if same else ()), *labels[d + 1 :])] * len(op.out)


@aten("argmax argmin")
def where_largest(op: Op) -> Any:
    """Positions along `dim`; the other axes pass."""
    labels, dim = op.labels("self"), op.arg("dim")
    if dim is None:
        return op.freeze_all("gives positions", cause="positions")
    d = int(dim) % max(1, len(labels))
    op.freeze(labels[d], "gives positions", cause="positions")
    return (*labels[:d], *((None,) if op.arg("keepdim", False) else ()), *labels[d + 1 :])


@aten("unique masked_select masked_scatter")
def by_value(op: Op) -> Any:
    return op.freeze_all("is indexed by value", cause="indexed by value")


@aten("repeat tile")
def repeat(op: Op) -> Labels:
    """The axis' labels, again and again."""
    labels = op.labels("self")
    reps = list(op.arg("repeats", op.arg("dims")))
    reps = [1] * (len(labels) - len(reps)) + reps  # tile may name fewer axes than there are
    labels = (None,) * (len(reps) - len(labels)) + labels
    shape = (1,) * (len(reps) - len(op.shape("self"))) + op.shape("self")
    out: list[Axis] = []
    for axis, r, s in zip(labels, reps, shape, strict=True):
        if s == 1:
            out.append(op.space.fresh(int(r)))
        else:
            out.append(None if axis is None else np.tile(axis, int(r)))
    return tuple(out)


@aten("repeat_interleave")
def repeat_interleave(op: Op) -> Labels:
    """Each label several times (grouped queries repeat their key heads so)."""
    times, dim = op.arg("repeats"), op.arg("dim")
    if dim is None or op.tensor("self") is None:
        return op.freeze_all("is repeated by value", cause="indexed by value")  # type: ignore[no-any-return]
    labels = op.labels("self")
    d = int(dim) % len(labels)
    if not isinstance(times, int):
        op.freeze(labels[d], "is repeated by value", cause="indexed by value")
        return (*labels[:d], None, *labels[d + 1 :])
    axis = labels[d]
    if op.shape("self")[d] == 1:
        return (*labels[:d], op.space.fresh(times), *labels[d + 1 :])
    return (*labels[:d], None if axis is None else np.repeat(axis, times), *labels[d + 1 :])


@aten("pad constant_pad_nd")
def pad(op: Op) -> Labels:
    """Padding adds positions that stay; a live axis that is padded keeps its labels in the middle."""
    labels = list(op.labels("self"))
    amounts = list(op.arg("pad"))
    mode = op.arg("mode", "constant")
    for k in range(len(amounts) // 2):
        before, after = amounts[2 * k], amounts[2 * k + 1]
        d = len(labels) - 1 - k
        axis = labels[d]
        if axis is None or (before == 0 and after == 0):
            continue
        known = isinstance(before, int) and isinstance(after, int)
        if mode != "constant" or not known or before < 0 or after < 0:
            why = "is padded from its own values" if known else "is padded by a computed amount"
            op.freeze(axis, why, cause="mixes along the axis")
            labels[d] = None
            continue
        zero = [np.zeros(before, np.int64), axis, np.zeros(after, np.int64)]
        labels[d] = np.concatenate(zero)
    return tuple(labels)


@coupling("torchvision::roi_align", "torchvision::roi_pool")
def roi(op: Op) -> Any:
    """Boxes are cut out of space: (boxes, channels, height, width)."""
    node = op.node.all_input_nodes[0]
    out = (None, op.labels(node)[1], None, None)
    return [out] * len(op.out) if isinstance(op.out, (tuple, list)) else out


@coupling("python::getitem")
def getitem(op: Op) -> Any:
    source, k = op.node.args
    assert isinstance(source, fx.Node)
    value: Any = op.env[source]
    return value[int(k)] if isinstance(value, list) and isinstance(k, int) else None
