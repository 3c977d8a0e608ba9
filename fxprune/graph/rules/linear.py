"""Contractions: linear, matmul and its kin, einsum, embedding, recurrent cells."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import fx

from fxprune.graph.labels import Axis
from fxprune.graph.rules.elementwise import broadcast
from fxprune.graph.rules.op import Labels, Op, Reduced, aten, coupling, frozen_like, is_tensor, op_name


@aten("linear")
def linear(op: Op) -> Labels:
    """out[..., o] = sum_i x[..., i] w[o, i] + b[o]; without o where the weight is a vector."""
    x, w = op.labels("input"), op.labels("weight")
    op.tie(x[-1], w[-1])
    node = op.tensor("input")
    assert node is not None
    op.reads(node, -1, (op.arg("weight"), -1))
    if len(w) > 1 and op.tensor("bias") is not None and op.shape("bias"):
        op.tie(w[0], op.labels("bias")[0])
    return (*x[:-1], *w[:-1])


@aten("bilinear")
def bilinear(op: Op) -> Labels:
    """out[..., o] = sum_ij a[..., i] w[o, i, j] b[..., j] + c[o]"""
    a, b, w = op.labels("input1"), op.labels("input2"), op.labels("weight")
    op.tie(a[-1], w[1])
    op.tie(b[-1], w[2])
    for axis, name in enumerate(("input1", "input2"), start=1):
        node = op.tensor(name)
        assert node is not None
        op.reads(node, -1, (op.arg("weight"), axis))
    if op.tensor("bias") is not None:
        op.tie(w[0], op.labels("bias")[0])
    return (*(op.tie(p, q) for p, q in zip(a[:-1], b[:-1], strict=True)), w[0])


def _activations(op: Op, *names: str) -> bool:
    """Whether all these arguments depend on the input: then the contraction is an attention's."""
    return all((n := op.tensor(k)) is not None and n.op != "placeholder" for k in names)


def product(op: Op, left: str, right: str) -> Labels:
    """Batched matrix product of two arguments, with broadcasting of the batch axes."""
    a, b = op.labels(left), op.labels(right)
    sa, sb = op.shape(left), op.shape(right)
    node = op.tensor(left)
    assert node is not None
    meets = max(-2, -len(b))
    op.tie(a[-1], b[meets])
    op.reads(node, -1, (op.arg(right), meets))
    rows = a[-2:-1]
    cols = b[-1:] if len(b) > 1 else ()
    n = max(len(sa), len(sb)) - 2
    if n <= 0:
        return (*rows, *cols)
    out = op.out_shape[:n]
    batch = broadcast(op, [a[:-2], b[:-2]], [sa[:-2], sb[:-2]], out)
    if _activations(op, left, right):
        for axis in batch:
            op.space.hint(axis, "heads")
        for axis in (a[-1], rows[0] if rows else None, cols[0] if cols else None):
            op.space.hint(axis, "head_dim")
    return (*batch, *rows, *cols)


@aten("matmul bmm mm mv dot vdot inner")
def matmul(op: Op) -> Labels:
    """The last axis of the first meets the last but one of the second."""
    names = [n for n in ("self", "mat2", "other", "vec", "tensor") if op.tensor(n) is not None]
    return product(op, names[0], names[1])


@aten("addmm baddbmm addbmm addmv")
def addmm(op: Op) -> Labels:
    """self + a @ b, self broadcast onto the product."""
    left, right = ("batch1", "batch2") if op.tensor("batch1") is not None else ("mat1", "mat2")
    out = product(op, left, right)
    return broadcast(op, [out, op.labels("self")], [op.out_shape, op.shape("self")], op.out_shape)


@aten("tensordot")
def tensordot(op: Op) -> Labels:
    """The axes `dims_self` of one meet the axes `dims_other` of the other; the rest of both stands side by side."""
    a, b = op.labels("self"), op.labels("other")
    mine, theirs = ([int(d) % len(x) for d in op.arg(k)] for x, k in ((a, "dims_self"), (b, "dims_other")))
    node = op.tensor("self")
    assert node is not None
    for i, j in zip(mine, theirs, strict=True):
        op.tie(a[i], b[j])
        op.reads(node, i, (op.arg("other"), j))
    return (*(x for d, x in enumerate(a) if d not in mine), *(x for d, x in enumerate(b) if d not in theirs))


@aten("cosine_similarity")
def cosine_similarity(op: Op) -> Labels:
    """sum_i a[i] b[i] / (|a| |b|) along `dim`: each norm reads its own argument."""
    labels = broadcast(op, [op.labels(k) for k in ("x1", "x2")], [op.shape(k) for k in ("x1", "x2")], _joint(op))
    d = int(op.arg("dim", 1)) % len(labels)
    for name in ("x1", "x2"):
        node = op.tensor(name)
        assert node is not None
        if len(op.shape(name)) != len(labels) or op.shape(name)[d] != _joint(op)[d]:
            return op.freeze_all("compares axes of different sizes")  # type: ignore[no-any-return]
        op.reads(node, d)
    return (*labels[:d], *labels[d + 1 :])


def _joint(op: Op) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(op.shape("x1"), op.shape("x2")))


@aten("cdist")
def cdist(op: Op) -> Labels:
    """|a[..., p, :] - b[..., r, :]| for all pairs p, r."""
    a, b = op.labels("x1"), op.labels("x2")
    op.tie(a[-1], b[-1])
    for name in ("x1", "x2"):
        node = op.tensor(name)
        assert node is not None
        op.reads(node, -1)
    batch = broadcast(op, [a[:-2], b[:-2]], [op.shape("x1")[:-2], op.shape("x2")[:-2]], op.out_shape[:-2])
    return (*batch, a[-2], b[-2])


@aten("pairwise_distance")
def pairwise_distance(op: Op) -> Labels:
    """|a - b + eps| over the last axis, taken over what stays (eps counts for every position)."""
    shapes = [op.shape("x1"), op.shape("x2")]
    joint = tuple(np.broadcast_shapes(*shapes))
    if any(not s or s[-1] != joint[-1] for s in shapes):
        return op.freeze_all("compares axes of different sizes")  # type: ignore[no-any-return]
    labels = broadcast(op, [op.labels("x1"), op.labels("x2")], shapes, joint)
    if labels[-1] is not None:
        op.facts.statistics[op.name] = (len(shapes[0]) - 1,)
        op.facts.reduced.append(Reduced(op.name, labels[-1], exact=True))
    return (*labels[:-1], None) if op.arg("keepdim", False) else labels[:-1]


@aten("outer ger")
def outer(op: Op) -> Labels:
    """out[i, j] = a[i] b[j]"""
    return (op.labels("self")[0], op.labels("vec2")[0])


@aten("einsum")
def einsum(op: Op) -> Labels:
    """Equal letters are equal axes; letters that vanish are summed over."""
    operands = list(op.arg("tensors"))
    spec = str(op.arg("equation")).replace(" ", "")
    left, _, right = spec.partition("->")
    terms = left.split(",")
    if "..." in spec:
        free = max(len(op.shape(n)) - len(t.replace("...", "")) for t, n in zip(terms, operands, strict=True))
        dots = "".join(chr(0x1F600 + i) for i in range(free))
        terms = [
            t.replace("...", dots[free - (len(op.shape(n)) - len(t.replace("...", ""))) :])
            for t, n in zip(terms, operands, strict=True)
        ]
        right = right.replace("...", dots)
    if "->" not in spec:
        letters = "".join(terms)
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    axes: dict[str, Axis] = {}
    held: dict[str, list[int]] = {}
    for k, (term, n) in enumerate(zip(terms, operands, strict=True)):
        for d, c in enumerate(term):
            if op.shape(n)[d] == 1:
                continue
            axes[c] = op.tie(axes[c], op.labels(n)[d]) if c in axes else op.labels(n)[d]
            held.setdefault(c, []).append(k)
    activations = all(n.op != "placeholder" for n in operands) and len(operands) == 2
    for c, where in held.items():
        n = operands[where[0]]
        if c not in right:
            op.reads(n, terms[where[0]].index(c), *((operands[k], terms[k].index(c)) for k in where[1:]))
        if activations:
            shared = len(where) == 2 and c in right
            op.space.hint(axes[c], "heads" if shared else "head_dim")
    return tuple(axes.get(c) for c in right)


@coupling("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(op: Op) -> Labels:
    """Rows of x, sorted by expert, times one matrix an expert: out[n, o] = sum_i x[n, i] w[expert of n, i, o]."""
    x, w, offsets = op.node.args[:3]
    if not is_tensor(x) or not is_tensor(w) or len(op.shape(w)) != 3 or len(op.shape(x)) != 2:  # type: ignore[arg-type]
        return op.freeze_all("is a ragged product of another form")  # type: ignore[no-any-return]
    a, b = op.labels(x), op.labels(w)  # type: ignore[arg-type]
    op.freeze(b[0], "is picked by expert", cause="indexed by value")
    for axis in op.labels(offsets) if is_tensor(offsets) else ():  # type: ignore[arg-type]
        op.freeze(axis, "says where experts start", cause="positions")
    op.tie(a[-1], b[1])
    op.reads(x, -1, (w, 1))  # type: ignore[arg-type]
    for axis in b[1:]:  # the kernel wants strides of 16 bytes
        if axis is not None:
            op.facts.multiples.append((axis, max(1, 16 // w.meta["val"].element_size())))  # type: ignore[union-attr]
    return (a[0], b[2])


@aten("embedding")
def embedding(op: Op) -> Labels:
    """out[..., c] = w[index[...], c]: rows are looked up by value, so they stay."""
    w = op.labels("weight")
    op.freeze(w[0], "is looked up by index", cause="indexed by value")
    return (*op.labels("indices"), w[1])


@aten("embedding_bag _embedding_bag")
def embedding_bag(op: Op) -> list[Labels]:
    w = op.labels("weight")
    op.freeze(w[0], "is looked up by index", cause="indexed by value")
    out = frozen_like(op.out)
    out[0] = (*out[0][:-1], w[1])
    if op.arg("mode", 0) == 2 or op.tensor("per_sample_weights") is not None:
        op.freeze(w[1], "is reduced by max", cause="reduction over channels")
        out[0] = (*out[0][:-1], None)
    return out  # type: ignore[no-any-return]


_GATES = {"aten::lstm": 4, "aten::gru": 3, "aten::rnn_tanh": 1, "aten::rnn_relu": 1}
_GATES |= {"aten::lstm_cell": 4, "aten::gru_cell": 3, "aten::rnn_tanh_cell": 1, "aten::rnn_relu_cell": 1}


@aten("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def recurrent_cell(op: Op) -> Labels | list[Labels]:
    """One step of one layer: the new state has the hidden width of the old one."""
    x, given, *params = op.node.args
    states: list[Any] = list(given) if isinstance(given, (tuple, list)) else [given]
    assert isinstance(x, fx.Node)
    hidden = op.labels(states[0])[-1]
    for s in states[1:]:
        hidden = op.tie(hidden, op.labels(s)[-1])
    op.reads(x, -1, (params[0], 1))
    _cell(op, [p for p in params if is_tensor(p)], op.labels(x)[-1], hidden, hidden, read_input=False)  # type: ignore[misc]
    out: Labels = (*op.labels(x)[:-1], hidden)
    return [out, out] if isinstance(op.out, (tuple, list)) else out


@aten("lstm gru rnn_tanh rnn_relu")
def recurrent(op: Op) -> list[Labels]:
    """Weights (gates x unit, input), (gates x unit, hidden) a layer and direction; all share one width of either.

    Hidden states are the units, or a projection of them by a last weight (hidden, unit).
    """
    x, given, params = op.node.args[:3]
    states: list[Any] = list(given) if isinstance(given, (tuple, list)) else [given]
    biases, directions = bool(op.arg("has_biases", True)), 2 if op.arg("bidirectional", False) else 1
    assert isinstance(x, fx.Node)
    assert isinstance(params, (tuple, list))
    layers = directions * int(op.arg("num_layers", 1))
    step = len(params) // max(1, layers)
    projected = step == (5 if biases else 3)
    if step * layers != len(params) or (not projected and step != (4 if biases else 2)):
        return op.freeze_all("is a recurrent layer of another form", cause="recurrent width")  # type: ignore[no-any-return]
    hidden = op.labels(states[0])[-1]
    unit = op.labels(states[-1])[-1]
    if not projected:
        unit = hidden = functools.reduce(op.tie, (op.labels(s)[-1] for s in states))
    below = op.labels(x)[-1]
    op.reads(x, -1, *((params[k * step], 1) for k in range(directions)))
    for layer in range(0, len(params), step * directions):
        for start in range(layer, layer + step * directions, step):
            cell: list[Any] = list(params[start : start + step])
            if projected:
                shrink = cell.pop()
                op.tie(op.labels(shrink)[0], hidden)
                op.tie(op.labels(shrink)[1], unit)
                op.reads(shrink, 1)
            _cell(op, cell, below, hidden, unit, read_input=layer > 0)
        below = None if hidden is None else np.tile(hidden, directions)
    out = frozen_like(op.out)
    out[0] = (*out[0][:-1], below)
    for k in range(1, len(out)):
        out[k] = (*out[k][:-1], hidden if k == 1 else unit)
    return out  # type: ignore[no-any-return]


def _cell(op: Op, params: list[fx.Node], below: Axis, hidden: Axis, unit: Axis, read_input: bool) -> None:
    """One layer, one direction.  Masks go on the columns that read the hidden state."""
    gates = _GATES[op_name(op.node.target)]
    op.tie(op.labels(params[0])[1], below)
    op.tie(op.labels(params[1])[1], hidden)
    op.reads(params[1], 1)
    if read_input:
        op.reads(params[0], 1)
    for p in params:
        n = op.shape(p)[0]
        gate, within = op.space.split(op.labels(p)[0], (gates, n // gates), op.name)
        op.freeze(gate, "is a gate", cause="recurrent width")
        op.tie(within, unit)
