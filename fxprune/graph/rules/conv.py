"""Convolutions of every rank, plain, transposed, grouped, depthwise and with channel multipliers.

plain       w (O, I, k...)      in[i] = w[:, i], out[o] = w[o]
transposed  w (I, O, k...)
g groups    in = (g, I/g), out = (g, O/g): either whole groups go, or the same position in every group
"""

from __future__ import annotations

from fxprune.graph.labels import Axis
from fxprune.graph.rules.op import Labels, Op, Reduced, aten, coupling


def _convolve(op: Op, rows: Axis, columns: Axis, n_rows: int, transposed: bool, groups: int) -> Axis:
    """Couple the channel axes; returns the labels of the output channels.

    `rows` is axis 0 of the weight, `columns` axis 1.
    """
    x = op.labels("input")
    rank = len(op.shape("weight")) - 2
    at = len(x) - rank - 1
    channels = x[at]
    node = op.tensor("input")
    assert node is not None
    weight = op.arg("weight")
    if groups == 1:
        op.tie(channels, rows if transposed else columns)
        op.reads(node, at, (weight, 0 if transposed else 1))
        return columns if transposed else rows
    n_in = op.shape("input")[at]
    if transposed:
        op.tie(channels, rows)
        if n_in == groups and columns is None:
            return rows
        group, inner = op.space.split(rows, (groups, n_in // groups), op.name)
        if inner is not None:
            op.reads(node, at, (weight, 0))
        n_out = op.shape("weight")[1]
        return op.space.merge((group, columns), (groups, n_out), op.name)
    if n_in == groups and n_rows == groups:
        return op.tie(rows, channels)
    group, inner = op.space.split(channels, (groups, n_in // groups), op.name)
    op.tie(inner, columns)
    if inner is not None:
        op.reads(node, at, (weight, 1))
    out_group, _ = op.space.split(rows, (groups, n_rows // groups), op.name)
    op.tie(group, out_group)
    return rows


@aten("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d _convolution")
def conv(op: Op) -> Labels:
    x, w = op.labels("input"), op.labels("weight")
    transposed = bool(op.arg("transposed", "conv_transpose" in str(op.node.target)))
    rank = len(w) - 2
    at = len(x) - rank - 1
    out = _convolve(op, w[0], w[1], op.shape("weight")[0], transposed, int(op.arg("groups", 1)))
    if op.tensor("bias") is not None:
        op.tie(out, op.labels("bias")[0])
    slides = None if transposed else _slides(op, x[at + 1 :])
    space = tuple(x[at + 1 + k] if k == slides else _pointwise(op, x[at + 1 + k], k) for k in range(rank))
    if slides is not None and (axis := x[at + 1 + slides]) is not None:
        op.facts.statistics[op.name] = (at + 1 + slides,)
        op.facts.reduced.append(Reduced(op.name, axis))
        op.facts.ordered.append(axis)
    for axis in (*(a for a, b in zip(x[at + 1 :], space, strict=True) if b is None), *w[2:]):
        op.freeze(axis, "is a spatial axis of a convolution", cause="spatial axis")
    return (*x[:at], out, *space)


def _option(op: Op, k: int, name: str, default: int) -> int:
    """The number that an option of a convolution has for spatial axis `k`."""
    value = op.arg(name, default)
    return int(value[k if len(value) > 1 else 0]) if isinstance(value, (tuple, list)) and value else int(value or 0)


def _pointwise(op: Op, axis: Axis, k: int) -> Axis:
    """The labels of spatial axis `k` of the output: those of the input where the kernel has size one and step one."""
    if op.shape("weight")[2 + k] != 1 or not isinstance(op.arg("padding", 0), (int, list, tuple)):
        return None
    still = [_option(op, k, n, d) for n, d in (("stride", 1), ("padding", 0), ("output_padding", 0))] == [1, 0, 0]
    return axis if still else None


def _slides(op: Op, space: Labels) -> int | None:
    """The spatial axis along which one plain filter slides over channels, and leaves their number (channel attention).

    There it is taken over the channels that stay, each with its neighbours among them.
    """
    kernel, padding = op.shape("weight"), op.arg("padding", 0)
    wide = [k for k in range(len(space)) if kernel[2 + k] > 1]
    if kernel[:2] != (1, 1) or len(wide) != 1 or space[wide[0]] is None:
        return None
    (k,) = wide
    reach = _option(op, k, "dilation", 1) * (kernel[2 + k] - 1)
    same = padding == "same" if isinstance(padding, str) else 2 * _option(op, k, "padding", 0) == reach
    return k if same and reach % 2 == 0 and _option(op, k, "stride", 1) == 1 else None


@coupling("torchvision::deform_conv2d")
def deformable(op: Op) -> Labels:
    """A convolution whose taps are moved by `offset` and weighed by `mask`, a set for each block of channels."""
    x, w = op.labels("input"), op.labels("weight")
    blocks = int(op.arg("offset_groups", 1))
    if x[1] is not None and blocks > 1:
        block, _ = op.space.split(x[1], (blocks, len(x[1]) // blocks), op.name)
        op.freeze(block, "has offsets of its own", cause="spatial axis")
    out = _convolve(op, w[0], w[1], op.shape("weight")[0], False, int(op.arg("groups", 1)))
    if op.tensor("bias") is not None:
        op.tie(out, op.labels("bias")[0])
    moved = [op.labels("offset")[1:], op.labels("mask")[1:] if op.arg("use_mask", True) else ()]
    for axis in (*x[2:], *w[2:], *(a for axes in moved for a in axes)):
        op.freeze(axis, "is a spatial axis of a convolution", cause="spatial axis")
    return (x[0], out, None, None)
