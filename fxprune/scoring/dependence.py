"""How much the loss depends on what a layer gives, sample by sample and place by place.

For the outputs z of the model, the curvature of the loss in them, ∇²L, and a random v (standard normal):

    u = ∇²L v / √(vᵀ ∇²L v)                      for each sample: a direction in which its answer must not move
    d(row of a layer's output y) = ‖ (∂z/∂y_row)ᵀ u ‖²

d is the row's share of the trace of the Gauss-Newton matrix of the layer's output, by one probe.  A squared error is as
much curved everywhere; a cross entropy where the model is in doubt.  Where the loss has no curvature in the outputs, as
with a model that computes it itself, u is the gradient there.

Source: Schraudolph, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent, Neural Computation 2002.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from fxprune.scoring.batches import run
from fxprune.scoring.context import Context
from fxprune.scoring.observation import Backwards, Call
from fxprune.scoring.parts import out_of_memory

LEAST = 1e-3  # of |∇²L v| |v|, that vᵀ ∇²L v counts at least: a loss need not be convex


def dependence(ctx: Context, batch: Any, reads: Mapping[str, int]) -> dict[str, list[Tensor]]:
    """Weight -> d of the outputs of each of its calls, the last one first: (samples · places,), in their order.

    Args:
        ctx: the model, and the loss; without one, half the mean square of the outputs stands for it.
        batch: one of its batches.
        reads: the axis that each weight is summed over in a forward pass.

    Raises:
        InputsError, CriterionError: the loss fails, is not finite, or has no gradient.
    """
    found: dict[str, list[Tensor]] = {}

    def visit(call: Call) -> None:
        if call.inputs is not None and call.reads != reads.get(call.weight):  # else a checkpoint's second forward
            found.setdefault(call.weight, []).append(call.inputs.float().square().sum(1).flatten())

    with Outputs(ctx.model) as outputs:
        value = (ctx if ctx.loss_function is not None else replace(ctx, loss_function=_size)).loss(batch)
    with torch.enable_grad():
        along = outputs.along(value)
    if along is not None:
        with Backwards(ctx.tensors, visit):
            ctx.backward(along, lambda name, gradient: None)
    return found


class Outputs:
    """Within, what a model gives is cut off from what is made of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.pairs: list[tuple[Tensor, Tensor]] = []  # as the model gave it, and as the loss sees it
        self.handle: RemovableHandle | None = None

    def __enter__(self) -> Outputs:
        self.handle = self.model.register_forward_hook(lambda module, args, out: pytree.tree_map(self._cut, out))
        return self

    def __exit__(self, *error: Any) -> None:
        if self.handle is not None:
            self.handle.remove()

    def _cut(self, out: Any) -> Any:
        if not isinstance(out, Tensor) or not out.is_floating_point() or not out.requires_grad:
            return out
        self.pairs.append((out, out.detach().requires_grad_()))
        return self.pairs[-1][1].clone()  # which the loss may write into

    def along(self, value: Tensor) -> Tensor | None:
        """Σ z · u, a scalar; None where the loss makes nothing of what the model gives."""
        seen = [leaf for _, leaf in self.pairs]
        gradients: list[Tensor | None] = []
        if seen:
            gradients += torch.autograd.grad(value, seen, create_graph=True, allow_unused=True)
        if all(g is None for g in gradients):
            return None
        directions = _curved(gradients, seen) or gradients
        return torch.stack(
            [(z * u.detach()).sum() for (z, _), u in zip(self.pairs, directions, strict=True) if u is not None]
        ).sum()


def _curved(gradients: list[Tensor | None], seen: list[Tensor]) -> list[Tensor | None]:
    """u of every output; none at all where the loss has no curvature, or no second derivative."""
    probes = [torch.randn_like(z) for z in seen]
    both = [(g * v).sum() for g, v in zip(gradients, probes, strict=True) if g is not None and g.requires_grad]
    try:
        moved: list[Tensor | None] = list(torch.autograd.grad(both, seen, allow_unused=True)) if both else []
    except RuntimeError as e:
        if out_of_memory(e):
            raise
        return []
    if not any(h is not None and bool(h.any()) for h in moved):
        return []
    return [None if h is None else _scaled(h, v) for h, v in zip(moved, probes, strict=True)]


def _scaled(h: Tensor, v: Tensor) -> Tensor:
    """∇²L v over √(vᵀ ∇²L v), sample by sample."""
    flat, along = (x.float().reshape(len(x) if x.dim() else 1, -1) for x in (h, v))
    size = (flat * along).sum(1).maximum(LEAST * flat.norm(dim=1) * along.norm(dim=1))
    u = flat / size.clamp_min(torch.finfo(flat.dtype).tiny).sqrt()[:, None]
    return u.reshape(h.shape).to(h.dtype)


def _size(model: nn.Module, batch: Any) -> Tensor:
    """Half the mean square of all that a model gives."""
    given = [z for z in pytree.tree_leaves(run(model, batch)) if isinstance(z, Tensor) and z.is_floating_point()]
    return torch.stack([z.float().square().mean() for z in given]).sum() / 2
