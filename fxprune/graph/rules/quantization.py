"""Fake quantisation (training that prepares for integers): values are rounded to one scale, or one a channel.

An observer that is on takes its range over what stays.
"""

from __future__ import annotations

from typing import Any

from fxprune.graph.rules.op import Labels, Op, aten, frozen_like

_OF_A_CHANNEL = ("scale", "zero_point", "running_min", "running_max")


def _rounded(op: Op, axis: int | None) -> Labels:
    """The labels of what is rounded, with scales and ranges a channel where `axis` says which axis those are of."""
    labels = list(op.labels("self"))
    if axis is None:
        return tuple(labels)
    for name in _OF_A_CHANNEL:
        if op.tensor(name) is not None and op.shape(name) == (op.shape("self")[axis],):
            labels[axis] = op.tie(labels[axis], op.labels(name)[0])
    return tuple(labels)


def _alike(op: Op, labels: Labels) -> Any:
    """Labels for the rounded values, and for a mask of what was not clipped where there is one."""
    return [labels] * len(op.out) if isinstance(op.out, (tuple, list)) else labels


@aten(
    "fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine"
)
def of_a_tensor(op: Op) -> Any:
    return _alike(op, _rounded(op, None))


@aten(
    "fake_quantize_per_channel_affine fake_quantize_per_channel_affine_cachemask "
    "_fake_quantize_learnable_per_channel_affine"
)
def of_channels(op: Op) -> Any:
    return _alike(op, _rounded(op, int(op.arg("axis"))))


@aten("fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper")
def observed(op: Op) -> Any:
    """Rounded by the range that it has seen, one of all, or one a position of `ch_axis`."""
    own = int(op.arg("ch_axis")) if op.arg("per_row_fake_quant", False) else None
    labels = _rounded(op, own)
    if live := tuple(d for d, axis in enumerate(labels) if axis is not None and d != own):
        op.facts.statistics[op.name] = live
    if isinstance(op.out, (tuple, list)):
        return [labels, *frozen_like(op.out)[1:]]
    return labels
