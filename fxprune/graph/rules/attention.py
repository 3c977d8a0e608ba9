"""scaled_dot_product_attention, with masks, biases and grouped queries."""

from __future__ import annotations

import numpy as np

from fxprune.graph.rules.elementwise import broadcast
from fxprune.graph.rules.op import Attended, Labels, Op, aten


@aten("scaled_dot_product_attention")
def sdpa(op: Op) -> Labels:
    """softmax(q k^T * scale + mask) v: batch axes (heads) equal, q and k contract over head_dim."""
    q, k, v = op.labels("query"), op.labels("key"), op.labels("value")
    sq, sk, sv = op.shape("query"), op.shape("key"), op.shape("value")
    node = op.tensor("query")
    assert node is not None
    op.tie(q[-1], k[-1])
    op.tie(k[-2], v[-2])
    op.freeze(k[-2], "softmax runs over it", cause="mixes along the axis")
    op.reads(node, -1, (op.arg("key"), -1))
    batch = [q[:-2], k[:-2], v[:-2]]
    shapes = [sq[:-2], sk[:-2], sv[:-2]]
    if op.arg("enable_gqa", False):
        for i in (1, 2):
            axis = batch[i][-1]
            times = sq[-3] // shapes[i][-1]
            if axis is not None and times > 1:
                batch[i] = (*batch[i][:-1], np.repeat(axis, times))
                shapes[i] = (*shapes[i][:-1], sq[-3])
            elif axis is None and times > 1:
                op.freeze(q[-3], "shares one key head", cause="shared key head")
    out = broadcast(op, batch, shapes, op.out_shape[:-2])
    if op.tensor("attn_mask") is not None:
        mask, sm = op.labels("attn_mask"), op.shape("attn_mask")
        weights = (*out, q[-2], None)
        broadcast(op, [weights, mask], [(*op.out_shape[:-1], sk[-2]), sm], (*op.out_shape[:-1], sk[-2]))
    for axis in out:
        op.space.hint(axis, "heads")
    for axis in (q[-1], v[-1]):
        op.space.hint(axis, "head_dim")
    if op.arg("scale") is None and q[-1] is not None:
        op.facts.attended.append(Attended(op.name, q[-1]))
    return (*out, q[-2], v[-1])
