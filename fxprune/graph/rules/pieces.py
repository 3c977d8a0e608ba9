"""Cuts and joins along one axis: slices, splits, cat and stack are sub-arrays of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from fxprune.graph.labels import Axis, Ints
from fxprune.graph.rules.op import Labels, Op, aten, op_name, shape_of


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
    if piece.step > 1 and len(piece) > 1:
        return (*labels[:d], _strided(op, labels[d], piece), *labels[d + 1 :])
    return _cut(op, labels, d, [(piece.start, piece.stop, piece.step)])[0]


def _strided(op: Op, axis: Axis, piece: range) -> Axis:
    """Every `step`-th position.  Python will take every `step`-th of what stays, so whole runs of `step` go."""
    if axis is None:
        return None
    if len(axis) % piece.step:
        op.freeze(axis, f"is read in steps of {piece.step}, which do not divide it", cause="indexed by value")
        return None
    run, within = op.space.split(axis, (len(axis) // piece.step, piece.step), op.name)
    op.freeze(within, "is a place within a step", cause="indexed by value")
    return None if run is None else run[[p // piece.step for p in piece]]


@aten("chunk unsafe_chunk")
def chunk(op: Op) -> list[Labels]:
    """Equal pieces; Python will cut what stays into equal pieces again, so the pieces shrink alike."""
    pieces: list[Labels] = split(op)
    d = split_axis(op.node)
    first = pieces[0][d]
    for piece in pieces[1:]:
        other = piece[d]
        if first is not None and other is not None and len(first) == len(other):
            op.tie(other, first)
        else:
            for axis in (first, other):
                op.freeze(axis, "is cut into unequal pieces", cause="indexed by value")
    return pieces


@aten("tensor_split hsplit vsplit dsplit")
def tensor_split(op: Op) -> list[Labels]:
    """So many pieces as alike as can be, as `chunk`; or borders, as `split`."""
    by_number = isinstance(op.arg("sections", op.arg("tensor_indices_or_sections")), int)
    pieces: list[Labels] = chunk(op) if by_number else split(op)
    return pieces


_SPLIT_AXIS = {"aten::hsplit": 1, "aten::vsplit": 0, "aten::dsplit": 2}
SPLITS = frozenset(f"aten::{n}" for n in ["split", "chunk", "split_with_sizes", "unsafe_split", "unsafe_chunk"])
SPLITS |= {"aten::tensor_split", *_SPLIT_AXIS}


def split_axis(node: fx.Node) -> int:
    """The axis that a node of `SPLITS` cuts into pieces."""
    rank = len(shape_of(node.args[0]))
    given: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    d = _SPLIT_AXIS.get(op_name(node.target), given)
    return int(d) % rank if rank > 1 else 0


@aten("split split_with_sizes unsafe_split")
def split(op: Op) -> list[Labels]:
    """Pieces one after the other."""
    labels = op.labels("self")
    d = split_axis(op.node)
    pieces, start = [], 0
    for value in op.out:
        pieces.append((start, start + int(value.shape[d]), 1))
        start = pieces[-1][1]
    return _cut(op, labels, d, pieces)


@aten("cat concat concatenate")
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
