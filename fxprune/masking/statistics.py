"""Norms and reductions over what stays: every mean is Σ m·x / Σ m.

A mask of ones gives the plain function, a mask of zeros and ones what the function gives once the masked channels are
gone, and between the two everything is differentiable.  Masks broadcast against x; None stands for ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(x: Tensor, dims: tuple[int, ...], m: Tensor | None, keepdim: bool = True) -> Tensor:
    """Σ m·x / Σ m over `dims` (0 where nothing stays)."""
    if m is None:
        return x.mean(dims, keepdim=keepdim)
    weight = m.expand_as(x)
    return (x * m).sum(dims, keepdim=keepdim) / weight.sum(dims, keepdim=keepdim).clamp_min(torch.finfo(x.dtype).tiny)


def masked_var(
    x: Tensor, dims: tuple[int, ...], m: Tensor, correction: float, keepdim: bool = True
) -> tuple[Tensor, Tensor]:
    """Variance Σ m·(x − mean)² / (Σ m − correction) and mean over `dims`."""
    mean = masked_mean(x, dims, m)
    count = m.expand_as(x).sum(dims, keepdim=True)
    var = ((x - mean) ** 2 * m).sum(dims, keepdim=True) / (count - correction)
    return (var, mean) if keepdim else (var.squeeze(dims), mean.squeeze(dims))


def masked_extreme(kind: str, x: Tensor, m: Tensor) -> Tensor:
    """x such that its "amax", "amin", "logsumexp" or "prod" is that over what stays: what goes never decides it.

    Between 0 and 1 a mask moves x by log m, so that the result moves continuously (for "logsumexp": weighs by m).
    """
    if kind == "prod":
        return 1 + (x - 1) * m
    if not x.is_floating_point():
        far = torch.iinfo(x.dtype).max if "min" in kind else torch.iinfo(x.dtype).min
        return torch.where(m > 0, x, far)
    return x - m.log() if "min" in kind else x + m.log()


def masked_range(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, m: Tensor) -> Any:
    """The least and the largest of what stays; `function` gives both (torch.aminmax)."""
    far = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    low, high = (function(torch.where(m > 0, x, beyond))[k] for k, beyond in enumerate((far.max, far.min)))
    return torch.return_types.aminmax((low, high))


def masked_softmax(x: Tensor, dim: int, m: Tensor, logarithm: bool = False) -> Tensor:
    """m·exp(x) / Σ m·exp(x); its logarithm without the first m."""
    top = torch.where(m > 0, x, -torch.inf).amax(dim, keepdim=True)
    below = torch.where(m > 0, x - top, 0.0)  # what goes must not overflow
    weighed = m * below.exp()
    total = weighed.sum(dim, keepdim=True)
    return below - total.log() if logarithm else weighed / total


def masked_filter(x: Tensor, dim: int, m: Tensor, taps: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """A filter that slides along `dim` over what stays, zeros beyond it.

    A channel's place is the sum of the masks up to it, and between two places a tap reads of both: y_i = Σ_t w_t Σ_j
    m_j x_j max(0, 1 - |p_j - p_i - t|).

    Args:
        taps: (k,), k odd.
    """
    m = m.flatten()
    place = m.cumsum(0)
    reach = dilation * (torch.arange(len(taps), device=x.device) - len(taps) // 2)
    apart = place[None, :] - place[:, None]
    reads = (1 - (apart[None] - reach[:, None, None]).abs()).clamp_min(0) * m  # (k, i, j)
    y = (x.movedim(dim, -1) @ torch.einsum("k,kij->ji", taps, reads)).movedim(-1, dim)
    return y if bias is None else y + bias.view(-1)[0]


def masked_observation(
    function: Callable[..., Tensor], x: Tensor, masks: Mapping[int, Tensor], observer_on: Tensor, rest: tuple[Any, ...]
) -> Tensor:
    """Fake quantisation of x by a range that is observed on what stays.

    Args:
        function: torch.fused_moving_avg_obs_fake_quant; it keeps the range in its arguments.
        masks: axis -> one number a position.
    """
    kept = x
    for d, m in masks.items():
        kept = kept.index_select(d, m.flatten().nonzero().flatten())
    function(kept, observer_on, *rest)
    return function(x, torch.zeros_like(observer_on), *rest)


def kept_pairs(a: Tensor, b: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors along their last axis without the positions whose mask (one number each) is zero, times it else."""
    at = m.flatten().nonzero().flatten()
    return tuple((t * m.view(-1)).index_select(-1, at.to(t.device)) for t in (a, b))  # type: ignore[return-value]


def masked_spread(
    kind: str, x: Tensor, dims: tuple[int, ...], m: Tensor, correction: float, keepdim: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """What torch's functions "var", "std", "var_mean" and "std_mean" return."""
    var, mean = masked_var(x, dims, m, correction, keepdim)
    value = var if "var" in kind else var.sqrt()
    return (value, mean) if kind.endswith("_mean") else value


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def masked_layer_norm(
    x: Tensor,
    dims: tuple[int, ...],
    m: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool = True,
) -> Tensor:
    """Layer norm over `dims`; an RMS norm if not `centred`."""
    y = x - masked_mean(x, dims, m) if centred else x
    return _affine(y * torch.rsqrt(masked_mean(y * y, dims, m) + eps), weight, bias)


def masked_group_norm(
    x: Tensor,
    m: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    place: Tensor | None = None,
) -> Tensor:
    """Group norm of x (N, C, ...) under a channel mask m (C,).

    The moments of each channel come first (one pass over x), those of each group from them (small), and one multiply
    and add applies scale and shift, as in the fused kernel.

    Args:
        place: the group of every channel; None: blocks of equal size.
    """
    channels, space = x.shape[1], tuple(range(2, x.dim()))
    if place is None:
        place = torch.arange(channels, device=x.device) // (channels // groups)
    member = F.one_hot(place, groups).to(x.dtype) * m[:, None]  # (C, G)
    share = member / member.sum(0).clamp_min(torch.finfo(x.dtype).tiny)
    var, mean = torch.var_mean(x, space, correction=0) if space else (torch.zeros_like(x), x)
    centre = (mean @ share)[:, place]  # (N, C)
    spread = (var + (mean - centre) ** 2) @ share
    scale = torch.rsqrt(spread + eps)[:, place]
    scale = scale if weight is None else scale * weight
    shift = -centre * scale if bias is None else bias - centre * scale
    wide = (...,) + (None,) * len(space)
    return torch.addcmul(shift[wide], x, scale[wide])


def masked_batch_norm(x: Tensor, m: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Batch norm with statistics of the batch itself, channels on axis 1: how weight standardisation is written."""
    dims = tuple(d for d in range(x.dim()) if d != 1)
    y = x - masked_mean(x, dims, m)
    y = y * torch.rsqrt(masked_mean(y * y, dims, m) + eps)
    wide = (slice(None),) + (None,) * (x.dim() - 2)
    return _affine(y, None if weight is None else weight[wide], None if bias is None else bias[wide])
