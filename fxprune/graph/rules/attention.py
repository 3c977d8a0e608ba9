"""scaled_dot_product_attention, with masks, biases and grouped queries, and flex_attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from fxprune.graph.rules.elementwise import broadcast
from fxprune.graph.rules.op import Attended, Labels, Op, aten, coupling, is_tensor


def _batch(op: Op, tensors: tuple[fx.Node, fx.Node, fx.Node], grouped: bool, out: tuple[int, ...]) -> Labels:
    """The joint batch axes (heads) of query, key and value; grouped, several query heads share one of the others."""
    batch = [op.labels(n)[:-2] for n in tensors]
    shapes = [op.shape(n)[:-2] for n in tensors]
    for i in (1, 2) if grouped else ():
        axis = batch[i][-1]
        times = shapes[0][-1] // shapes[i][-1]
        if axis is not None and times > 1:
            batch[i] = (*batch[i][:-1], np.repeat(axis, times))
            shapes[i] = (*shapes[i][:-1], shapes[0][-1])
        elif axis is None and times > 1:
            op.freeze(batch[0][-1], "shares one key head", cause="shared key head")
    joint = broadcast(op, batch, shapes, out)
    for axis in joint:
        op.space.hint(axis, "heads")
    for n in (tensors[0], tensors[2]):
        op.space.hint(op.labels(n)[-1], "head_dim")
    return joint


@aten("scaled_dot_product_attention")
def sdpa(op: Op) -> Labels:
    """softmax(q k^T * scale + mask) v: batch axes (heads) equal, q and k contract over head_dim."""
    tensors = op.args["query"], op.args["key"], op.args["value"]
    q, k, v = map(op.labels, tensors)
    node, sk = tensors[0], op.shape("key")
    op.tie(q[-1], k[-1])
    op.tie(k[-2], v[-2])
    op.freeze(k[-2], "softmax runs over it", cause="mixes along the axis")
    op.reads(node, -1, (op.arg("key"), -1))
    out = _batch(op, tensors, bool(op.arg("enable_gqa", False)), op.out_shape[:-2])
    if op.tensor("attn_mask") is not None:
        mask, sm = op.labels("attn_mask"), op.shape("attn_mask")
        weights = (*out, q[-2], None)
        broadcast(op, [weights, mask], [(*op.out_shape[:-1], sk[-2]), sm], (*op.out_shape[:-1], sk[-2]))
    if op.arg("scale") is None and q[-1] is not None:
        op.facts.attended.append(Attended(op.name, q[-1]))
    return (*out, q[-2], v[-1])


@coupling("python::flex_attention")
def flex(op: Op) -> list[Labels]:
    """softmax(score_mod(q k^T * scale)) v over what a block mask lets through.

    The scale is a number that its Python computes from head_dim, so that this stays.  So do heads that the functions
    look at: they count them.
    """
    query, key, value, score_mod, block_mask = op.node.args[:5]
    q, k, v = map(op.labels, (query, key, value))  # type: ignore[arg-type]
    op.tie(k[-2], v[-2])
    op.freeze(k[-2], "softmax runs over it", cause="mixes along the axis")
    for axis in (op.tie(q[-1], k[-1]), q[-1]):
        op.freeze(axis, "sets the softmax temperature", cause="attention scale")
    out = list(_batch(op, (query, key, value), True, op.shape(query)[:-2]))  # type: ignore[arg-type]
    captured = [n for given in op.node.args[7:] for n in given if is_tensor(n)]  # type: ignore[union-attr]
    for axis in (a for n in captured for a in op.labels(n)):  # type: ignore[arg-type]
        op.freeze(axis, "is looked up by score_mod or mask_mod", cause="indexed by value")
    blocks = [op.shape(n) for n in block_mask if is_tensor(n)]  # type: ignore[union-attr, arg-type]
    of_heads = any(len(shape) > 1 and shape[1] > 1 for shape in blocks)
    if of_heads or _looks_at(score_mod, 2) or _looks_at(block_mask[-1], 1):  # type: ignore[index]
        op.freeze(out[1], "is counted by score_mod or mask_mod", cause="indexed by value")
    joint: Labels = (*out, q[-2])
    return [(*joint, v[-1]), *([joint] * (len(op.out) - 1))]


def _looks_at(function: Any, argument: int) -> bool:
    """Whether a captured function uses one of its arguments; one that cannot be looked into may use any."""
    if function is None:
        return False
    if not isinstance(function, fx.GraphModule):
        return True
    given = [n for n in function.graph.nodes if n.op == "placeholder"]
    return len(given) > argument and bool(given[argument].users)
