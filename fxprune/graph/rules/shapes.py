"""Ops that only rearrange: axes move, split into factors and merge again.

A reshape is read as a list of common factors: each input axis splits into some of them, each output axis is the
product of some.  (C) -> (heads, head_dim) is a split; which factor lives is settled later
(`fxprune.graph.labels.resolve`).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from fxprune.graph.labels import Axis
from fxprune.graph.rules.op import Labels, Op, aten


def _cuts(shape: tuple[int, ...]) -> list[int]:
    """Suffix products: where the axes' borders lie, from the right."""
    out = [1]
    for s in reversed(shape):
        out.append(out[-1] * s)
    return out


def reshape_labels(op: Op, labels: Labels, old: tuple[int, ...], new: tuple[int, ...]) -> Labels:
    """Labels after a view of shape `old` as `new`."""
    if 0 in old:
        return (None,) * len(new)
    if -1 in old or -1 in new:
        return _uneven(op, labels, old, new)
    cuts = sorted(set(_cuts(old)) | set(_cuts(new)))
    if any(b % a for a, b in itertools.pairwise(cuts)):
        return _uneven(op, labels, old, new)
    atoms: dict[int, Axis] = {}  # by the suffix product at the atom's right border
    right = 1
    for axis, size in zip(reversed(labels), reversed(old), strict=True):
        borders = [c for c in cuts if right <= c <= right * size]
        sizes = tuple(b // a for a, b in itertools.pairwise(borders))[::-1]
        if sizes:
            for border, factor in zip(reversed(borders[:-1]), op.space.split(axis, sizes, op.name), strict=True):
                atoms[border] = factor
        right *= size
    out: list[Axis] = []
    right = 1
    for size in reversed(new):
        borders = [c for c in cuts if right <= c < right * size]
        nexts = [c for c in cuts if right < c <= right * size]
        sizes = tuple(b // a for a, b in zip(borders, nexts, strict=True))[::-1]
        out.append(op.space.merge(tuple(atoms[b] for b in reversed(borders)), sizes, op.name) if sizes else None)
        right *= size
    return tuple(reversed(out))


def _uneven(op: Op, labels: Labels, old: tuple[int, ...], new: tuple[int, ...]) -> Labels:
    """Axes whose borders do not nest, or of unknown size: equal ones at both ends pass, what lies between freezes.

    Unless it is known, and is a reshape by itself.
    """
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    ends = len(old) - tail, len(new) - tail
    between, made = old[head : ends[0]], new[head : ends[1]]
    if head + tail and -1 not in (*between, *made) and math.prod(between) == math.prod(made):
        middle = reshape_labels(op, labels[head : ends[0]], between, made)
        return (*labels[:head], *middle, *labels[ends[0] :])
    for axis in labels[head : ends[0]]:
        op.freeze(axis, "is reshaped across its borders", cause="uneven reshape")
    return (*labels[:head], *(None,) * len(made), *labels[ends[0] :])


@aten("view reshape _unsafe_view flatten unflatten view_as reshape_as _reshape_alias ravel view_copy")
def reshape(op: Op) -> Labels:
    out = reshape_labels(op, op.labels("self"), op.shape("self"), op.out_shape)
    other = op.tensor("other")
    if other is not None:
        out = tuple(op.tie(a, b) for a, b in zip(out, op.labels(other), strict=True))
    return out


@aten("unsqueeze squeeze")
def squeeze(op: Op) -> Labels:
    """Axes of size one come and go."""
    rest = iter([a for a, s in zip(op.labels("self"), op.shape("self"), strict=True) if s != 1])
    return tuple(None if s == 1 else next(rest) for s in op.out_shape)


@aten("permute")
def permute(op: Op) -> Labels:
    labels = op.labels("self")
    return tuple(labels[int(d)] for d in op.arg("dims"))


@aten("transpose swapaxes swapdims t numpy_T mT adjoint")
def transpose(op: Op) -> Labels:
    labels = list(op.labels(op.node.all_input_nodes[0]))
    if len(labels) < 2:
        return tuple(labels)
    a = op.arg("dim0", op.arg("axis0", -2))
    b = op.arg("dim1", op.arg("axis1", -1))
    labels[a], labels[b] = labels[b], labels[a]
    return tuple(labels)


@aten("movedim moveaxis")
def movedim(op: Op) -> Labels:
    source, target = op.arg("source"), op.arg("destination")
    n = len(op.labels("self"))
    src = [int(s) % n for s in ([source] if isinstance(source, int) else source)]
    dst = [int(s) % n for s in ([target] if isinstance(target, int) else target)]
    rest = [k for k in range(n) if k not in src]
    perm: list[int] = []
    for k in range(n):
        perm.append(src[dst.index(k)] if k in dst else rest.pop(0))
    return tuple(op.labels("self")[k] for k in perm)


@aten("diagonal")
def diagonal(op: Op) -> Labels:
    """Two axes become their diagonal, which comes last; the others pass."""
    labels = op.labels("self")
    pair = {int(op.arg(name)) % len(labels) for name in ("dim1", "dim2")}
    for d in pair:
        op.freeze(labels[d], "is read along a diagonal", cause="positions")
    return (*(a for d, a in enumerate(labels) if d not in pair), None)


@aten("diag_embed")
def diag_embed(op: Op) -> Labels:
    """The last axis becomes the diagonal of two; the others pass."""
    *labels, last = op.labels("self")
    op.freeze(last, "becomes a diagonal", cause="positions")
    rank = len(op.out_shape)
    pair = {int(op.arg(name)) % rank for name in ("dim1", "dim2")}
    rest = iter(labels)
    return tuple(None if d in pair else next(rest) for d in range(rank))


@aten("expand expand_as broadcast_to")
def expand(op: Op) -> Labels:
    """Size-one axes are repeated: new positions, all alike, that shrink with what they meet."""
    labels, shape, out = op.labels("self"), op.shape("self"), op.out_shape
    lead = len(out) - len(shape)
    result: list[Axis] = []
    for d, s in enumerate(out):
        same = d >= lead and shape[d - lead] == s
        result.append(labels[d - lead] if same else op.space.fresh(s))
    other = op.tensor("other")
    if other is not None:
        result = [op.tie(a, b) for a, b in zip(result, op.labels(other), strict=True)]
    return tuple(result)


@aten("pixel_shuffle")
def pixel_shuffle(op: Op) -> Labels:
    """(C r r, H, W) -> (C, H r, W r)"""
    labels, r = op.labels("self"), int(op.arg("upscale_factor"))
    channels, inner = op.space.split(labels[-3], (op.shape("self")[-3] // (r * r), r * r), op.name)
    op.freeze(inner, "becomes space", cause="spatial axis")
    return (*labels[:-3], channels, None, None)


@aten("pixel_unshuffle")
def pixel_unshuffle(op: Op) -> Labels:
    """(C, H r, W r) -> (C r r, H, W)"""
    labels, r = op.labels("self"), int(op.arg("downscale_factor"))
    axis = labels[-3]
    return (*labels[:-3], None if axis is None else np.repeat(axis, r * r), None, None)


@aten("channel_shuffle native_channel_shuffle")
def channel_shuffle(op: Op) -> Labels:
    """(groups, C / groups) -> (C / groups, groups): the op is called with this number of groups."""
    labels, g = list(op.labels("self")), int(op.arg("groups"))
    n = op.shape("self")[1]
    a, b = op.space.split(labels[1], (g, n // g), op.name)
    op.freeze(a, "is the number of groups")
    labels[1] = op.space.merge((b, a), (n // g, g), op.name)
    return tuple(labels)


@aten("im2col")
def im2col(op: Op) -> Labels:
    """(B, C, H, W) -> (B, C k k, L)"""
    labels = op.labels("self")
    k = math.prod(op.arg("kernel_size"))
    axis = labels[-3]
    return (*labels[:-3], None if axis is None else np.repeat(axis, k), None)


@aten("col2im")
def col2im(op: Op) -> Labels:
    """(B, C k k, L) -> (B, C, H, W)"""
    labels = op.labels("self")
    k = math.prod(op.arg("kernel_size"))
    channels, inner = op.space.split(labels[-2], (op.shape("self")[-2] // k, k), op.name)
    op.freeze(inner, "becomes space", cause="spatial axis")
    return (*labels[:-2], channels, None, None)


@aten("stft")
def stft(op: Op) -> Labels:
    """(..., time) -> (..., frequency, frame), and 2 more where the parts of complex numbers are given apart."""
    *rows, time = op.labels("self")
    window = op.tensor("window")
    for axis in (time, *(op.labels(window) if window is not None else ())):
        op.freeze(axis, "is cut into windows", cause="spatial axis")
    return (*rows, *(None for _ in op.out_shape[len(rows) :]))


@aten("unfold")
def unfold(op: Op) -> Labels:
    """Sliding windows along one axis: that axis stays, the windows come last."""
    labels = list(op.labels("self"))
    d = int(op.arg("dimension")) % len(labels)
    op.freeze(labels[d], "is cut into windows", cause="spatial axis")
    labels[d] = None
    return (*labels, None)


@aten("resize resize_as")
def resize(op: Op) -> Labels:
    """A tensor that makes room, as one of no or one element does for a table that will be written over it."""
    labels, old, new = op.labels("self"), op.shape("self"), op.out_shape
    if old == new:
        return labels
    if math.prod(old) > 1:
        return op.freeze_all("is resized", cause="mixes along the axis")  # type: ignore[no-any-return]
    return tuple(map(op.space.fresh, new))
