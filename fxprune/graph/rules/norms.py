"""Normalisations: the affine parameters follow the normalised axis; the statistics are taken over what stays."""

from __future__ import annotations

from fxprune.graph.rules.op import Labels, NormGroups, Op, aten, frozen_like


def _affine(op: Op, axis: int, *names: str) -> Labels:
    labels = list(op.labels("input"))
    for name in names:
        if op.tensor(name) is not None:
            labels[axis] = op.tie(labels[axis], op.labels(name)[0])
    return tuple(labels)


@aten("batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm")
def batch_norm(op: Op) -> Labels | list[Labels]:
    """One scale, shift, mean and variance a channel (axis 1)."""
    labels = _affine(op, 1, "weight", "bias", "running_mean", "running_var")
    if op.arg("training", False) or op.tensor("running_mean") is None:
        op.facts.statistics[op.name] = tuple(d for d in range(len(labels)) if d != 1 and labels[d] is not None)
    if isinstance(op.out, (tuple, list)):
        return [labels, *frozen_like(op.out)[1:]]
    return labels


@aten("instance_norm")
def instance_norm(op: Op) -> Labels:
    """Statistics over space, one a channel: nothing crosses channels."""
    return _affine(op, 1, "weight", "bias", "running_mean", "running_var")


@aten("layer_norm rms_norm native_layer_norm _fused_rms_norm")
def layer_norm(op: Op) -> Labels | list[Labels]:
    """Statistics over the last axes."""
    labels = list(op.labels("input"))
    n = len(op.arg("normalized_shape"))
    for name in ("weight", "bias"):
        if op.tensor(name) is not None:
            for d in range(-n, 0):
                labels[d] = op.tie(labels[d], op.labels(name)[d])
    op.facts.statistics[op.name] = tuple(d for d in range(len(labels) - n, len(labels)) if labels[d] is not None)
    if isinstance(op.out, (tuple, list)):
        return [tuple(labels), *frozen_like(op.out)[1:]]
    return tuple(labels)


@aten("group_norm")
def group_norm(op: Op) -> Labels:
    """Statistics over the members of each group of channels (axis 1) and space."""
    labels = _affine(op, 1, "weight", "bias")
    if labels[1] is not None:
        op.facts.statistics[op.name] = (1,)
        op.facts.norm_groups.append(NormGroups(op.name, labels[1], int(op.arg("num_groups"))))
    return labels


@aten("_weight_norm _weight_norm_interface")
def weight_norm(op: Op) -> Labels | list[Labels]:
    """w = g v / ||v||, the norm over all axes but `dim`, over what stays."""
    labels = list(op.labels("v"))
    d = op.arg("dim", 0) % len(labels)
    labels[d] = op.tie(labels[d], op.labels("g")[d])
    v = op.tensor("v")
    assert v is not None
    for k in range(len(labels)):
        if k != d:
            op.reads(v, k)
    return [tuple(labels), *frozen_like(op.out)[1:]] if isinstance(op.out, (tuple, list)) else tuple(labels)
