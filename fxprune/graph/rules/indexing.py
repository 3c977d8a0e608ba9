"""Indexing: an axis that is indexed by values stays, the others pass; cuts and joins are sub-arrays of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from fxprune.graph.labels import Axis, Ints
from fxprune.graph.rules.elementwise import broadcast
from fxprune.graph.rules.op import Labels, Op, aten, coupling, is_tensor


def _cut(op: Op, labels: Labels, d: int, pieces: list[tuple[int, int, int]]) -> list[Labels]:
    """Labels of slices (start, stop, step) of axis `d`; a piece of one position cannot be followed, so it freezes."""
    out = []
    for start, stop, step in pieces:
        axis = labels[d]
        part: Axis = None if axis is None else axis[start:stop:step]
        if part is not None and len(part) <= 1:
            op.freeze(part, "is picked out by position", cause="indexed by value")
            part = None
        out.append((*labels[:d], part, *labels[d + 1 :]))
    return out


@aten("slice narrow")
def slice_(op: Op) -> Labels:
    labels = op.labels("self")
    d = int(op.arg("dim", 0)) % len(labels)
    n = op.shape("self")[d]
    start = op.arg("start") or 0
    stop = n if op.arg("end") is None else op.arg("end")
    if op.arg("length") is not None:
        start = start % n if n else 0
        stop = start + op.arg("length")
    if not isinstance(start, int) or not isinstance(stop, int):
        return op.freeze_all("is cut at a computed position", cause="indexed by value")  # type: ignore[no-any-return]
    piece = range(n)[start : stop : int(op.arg("step", 1))]
    return _cut(op, labels, d, [(piece.start, piece.stop, piece.step)])[0]


@aten("chunk unsafe_chunk")
def chunk(op: Op) -> list[Labels]:
    """Equal pieces; Python will cut what stays into equal pieces again, so the pieces shrink alike."""
    pieces: list[Labels] = split(op)
    d = int(op.arg("dim", 0)) % len(pieces[0])
    first = pieces[0][d]
    for piece in pieces[1:]:
        other = piece[d]
        if first is not None and other is not None and len(first) == len(other):
            op.tie(other, first)
        else:
            for axis in (first, other):
                op.freeze(axis, "is cut into unequal pieces", cause="indexed by value")
    return pieces


@aten("split split_with_sizes unsafe_split tensor_split hsplit vsplit")
def split(op: Op) -> list[Labels]:
    """Pieces one after the other."""
    labels = op.labels("self")
    d = int(op.arg("dim", 0)) % len(labels)
    pieces, start = [], 0
    for value in op.out:
        pieces.append((start, start + int(value.shape[d]), 1))
        start = pieces[-1][1]
    return _cut(op, labels, d, pieces)


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


@aten("cat concat concatenate hstack")
def cat(op: Op) -> Labels:
    """Labels one after the other along `dim`; other axes are equal."""
    nodes = [n for n in op.arg("tensors") if op.shape(n) != (0,)]
    rank = len(op.out_shape)
    d = int(op.arg("dim", 0)) % rank
    out = list(op.labels(nodes[0]))
    for n in nodes[1:]:
        for k in range(rank):
            if k != d:
                out[k] = op.tie(out[k], op.labels(n)[k])
    parts = [op.labels(n)[d] for n in nodes]
    if all(p is None for p in parts):
        out[d] = None
    else:
        sizes = [op.shape(n)[d] for n in nodes]
        out[d] = np.concatenate([_or_frozen(p, s) for p, s in zip(parts, sizes, strict=True)])
    return tuple(out)


def _or_frozen(axis: Axis, n: int) -> Ints:
    return np.zeros(n, np.int64) if axis is None else axis


@aten("stack")
def stack(op: Op) -> Labels:
    nodes = list(op.arg("tensors"))
    out = op.labels(nodes[0])
    for n in nodes[1:]:
        out = tuple(op.tie(a, b) for a, b in zip(out, op.labels(n), strict=True))
    d = int(op.arg("dim", 0)) % (len(out) + 1)
    return (*out[:d], None, *out[d:])


@aten("index _unsafe_index index_put _unsafe_index_put")
def index(op: Op) -> Labels:
    """`x[i, :, j]`: axes with an index tensor stay; where the index stands, its own axes come in."""
    labels = op.labels("self")
    indices = list(op.arg("indices"))
    given = [k for k, i in enumerate(indices) if i is not None]
    masks = [i for i in indices if is_tensor(i) and str(i.meta["val"].dtype) == "torch.bool"]
    if masks:
        return op.freeze_all("is picked by a mask", cause="indexed by value")  # type: ignore[no-any-return]
    for k in given:
        op.freeze(labels[k], "is indexed by value", cause="indexed by value")
    if op.tensor("values") is not None:
        values, sv = op.labels("values"), op.shape("values")
        keep = [labels[k] for k in range(len(labels)) if k not in given]
        if given == list(range(len(given))) and len(values) >= len(keep):
            tail = len(keep)
            sizes = [op.shape("self")[k] for k in range(len(labels)) if k not in given]
            if tail:
                broadcast(op, [tuple(keep), values[-tail:]], [tuple(sizes), sv[-tail:]], tuple(sizes))
        else:
            for axis in (*values, *keep):
                op.freeze(axis, "is written by index", cause="indexed by value")
        return tuple(None if k in given else a for k, a in enumerate(labels))
    nodes = [indices[k] for k in given]
    shapes = [op.shape(n) for n in nodes]
    rank = max(len(s) for s in shapes)
    joint = len(op.out_shape) - (len(labels) - len(given))
    assert rank == joint
    size = op.out_shape[given[0] : given[0] + rank] if given[-1] - given[0] + 1 == len(given) else op.out_shape[:rank]
    picked = broadcast(op, [op.labels(n) for n in nodes], shapes, size)
    rest = [a for k, a in enumerate(labels) if k not in given]
    at = given[0] if given[-1] - given[0] + 1 == len(given) else 0
    return (*rest[:at], *picked, *rest[at:])


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
    x, index = op.labels("self"), op.labels("index")
    d = int(op.arg("dim")) % max(1, len(x))
    out: list[Axis] = []
    for k, (a, b) in enumerate(zip(x, index, strict=True)):
        if k != d and op.shape("self")[k] == op.shape("index")[k]:
            out.append(op.tie(a, b))
            continue
        op.freeze(a, "is indexed by value", cause="indexed by value")
        if k != d:
            op.freeze(b, "covers an axis in part", cause="indexed by value")
        out.append(b if k == d else None)
    return tuple(out)


@aten(
    "take_along_dim scatter scatter_add scatter_reduce index_add index_copy index_fill topk kthvalue mode "
    "unique masked_select"
)
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
