"""Element-wise ops: aligned positions are equal, with broadcasting; ops that PyTorch tags pointwise come here too."""

from __future__ import annotations

import torch

from fxprune.graph.labels import Axis
from fxprune.graph.rules.op import Labels, Op, aten, is_tensor


def broadcast(op: Op, operands: list[Labels], shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> Labels:
    """Labels of a broadcast of operands, aligned from the right; size-one axes take part in nothing."""
    result: list[Axis] = []
    for d in range(-len(out), 0):
        axes = [x[d] for x, s in zip(operands, shapes, strict=True) if len(s) >= -d and s[d] == out[d] and s[d] > 1]
        axis = axes[0] if axes else None
        for other in axes[1:]:
            axis = op.tie(axis, other)
        result.append(axis)
    return tuple(result)


# Ops that PyTorch leaves without the pointwise tag, although they are.
@aten(
    "add sub mul div rsub where masked_fill dropout feature_dropout alpha_dropout native_dropout relu6 selu celu "
    "mish hardswish hardsigmoid hardtanh leaky_relu log_sigmoid softplus threshold addcmul addcdiv lerp clamp "
    "clamp_min clamp_max rrelu nan_to_num floor_divide true_divide fmod remainder logical_and logical_or "
    "logical_not __and__ __or__ __xor__ square pow maximum minimum max.other min.other complex polar"
)
def elementwise(op: Op) -> Labels:
    if not isinstance(op.out, torch.Tensor):  # where(condition) lists positions
        return op.freeze_all("gives positions", cause="positions")  # type: ignore[no-any-return]
    nodes = [n for n in op.node.all_input_nodes if is_tensor(n)]
    return broadcast(op, [op.labels(n) for n in nodes], [op.shape(n) for n in nodes], op.out_shape)


@aten(
    "alias clone contiguous detach to _to_copy type_as lift_fresh_copy lift_fresh view_as_real_copy zeros_like "
    "ones_like full_like empty_like fill zero fill_ positive resolve_conj resolve_neg "
    "requires_grad _conj float half double conj identity cudnn_is_acceptable real imag"
)
def same(op: Op) -> Labels:
    """The output has the first argument's axes; other arguments only lend a type or a value."""
    return op.labels(op.node.all_input_nodes[0])


@aten("view_as_complex")
def view_as_complex(op: Op) -> Labels:
    """(..., 2) -> (...): the last axis is the real and the imaginary part."""
    *labels, pair = op.labels("self")
    op.freeze(pair, "is a real and an imaginary part", cause="indexed by value")
    return tuple(labels)


@aten("view_as_real")
def view_as_real(op: Op) -> Labels:
    return (*op.labels("self"), None)


@aten("copy")
def copy(op: Op) -> Labels:
    """`self.copy_(src)`: src is broadcast onto self."""
    a, b = op.tensor("self"), op.tensor("src")
    assert a is not None
    if b is None:
        return op.labels(a)
    return broadcast(op, [op.labels(a), op.labels(b)], [op.shape(a), op.shape(b)], op.shape(a))


@aten("prelu _prelu_kernel")
def prelu(op: Op) -> Labels:
    """One slope a channel (axis 1), or one for all."""
    labels = list(op.labels("self"))
    weight = op.labels("weight")[0] if op.shape("weight") else None
    if op.shape("weight") and op.shape("weight")[0] > 1:
        labels[1] = op.tie(labels[1], weight)
    return tuple(labels)


@aten("bucketize searchsorted")
def between_borders(op: Op) -> Labels:
    """Each value's place among sorted borders, which stay; where each row has borders of its own, so do the rows."""
    borders = op.tensor("boundaries") or op.tensor("sorted_sequence")
    if borders is None or len(op.shape(borders)) != 1 or op.tensor("sorter") is not None:
        return op.freeze_all("gives positions", cause="positions")  # type: ignore[no-any-return]
    op.freeze(op.labels(borders)[0], "gives positions", cause="positions")
    return () if op.tensor("self") is None else op.labels("self")


@aten("glu")
def glu(op: Op) -> Labels:
    """Halves of the axis `dim` meet: a * sigmoid(b)."""
    labels = list(op.labels("self"))
    d = op.arg("dim", -1) % len(labels)
    axis = labels[d]
    if axis is not None:
        half = len(axis) // 2
        labels[d] = op.tie(axis[:half], axis[half:])
    return tuple(labels)


@aten(
    "cumsum cumprod logcumsumexp cummax cummin flip roll rot90 diff sort msort argsort "
    "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 "
    "fft_ihfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift"
)
def along(op: Op) -> Labels | list[Labels]:
    """Ops that mix positions along `dim` (or `dims`): these axes freeze, the others pass."""
    labels = list(op.labels("self"))
    dims = op.arg("dim", op.arg("dims", -1))
    if op.name.startswith("msort"):
        dims = 0
    if dims is None:  # the last as many as there are sizes, or all
        dims = range(-len(op.arg("s") or labels), 0)
    for d in [dims] if isinstance(dims, int) else list(dims) or range(len(labels)):
        op.freeze(labels[d], "mixes positions along the axis", cause="mixes along the axis")
        labels[d] = None
    return [tuple(labels)] * len(op.out) if isinstance(op.out, (tuple, list)) else tuple(labels)
