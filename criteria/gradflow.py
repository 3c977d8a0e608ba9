"""Gradient flow: prune what keeps the network from training fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.scoring.context import Context
from fxprune.scoring.hessian import METHODS, Method


@dataclass(frozen=True)
class GradFlow:
    """θ · (H g), signed, summed over a channel's elements; the lowest are pruned first.

    A gradient step of size η lowers the loss by η ‖g‖² to first order, so ‖g‖² is how fast a network trains.  With
    g = ∇L and H = ∇²L, the gradient of ‖g‖² = gᵀg is 2 H g.  Removing weight q is the step Δθ = −θ_q e_q, hence

        Δ‖g‖² = (2 H g)ᵀ Δθ = −2 θ_q (H g)_q        to first order
        score(c) = Σ_{q ∈ E(c)} θ_q (H g)_q         so that removing channel c changes ‖g‖² by −2 score(c)

    A low (most negative) score means that the removal *raises* the gradient norm: such channels go first, and what is
    left trains fastest.  A high one means that gradient flow would be lost with the channel.  The sign matters, so
    nothing is made absolute; scores of a channel may cancel.  (GraSP writes −θ·Hg and removes the highest: the same
    channels.)

    preserve=True takes |θ_q (H g)_q| instead: those go first whose removal changes ‖g‖² least, up or down.  On a
    network that has been trained, what raises the gradient norm most is often what the loss can least do without;
    Lubana and Dick show it, and so do this project's measurements (see the documentation's page on quality).

    L is the mean loss over all batches.  g is accumulated over all of them first, then H g batch by batch, as the mean
    of H_b g: memory for one batch, and four to six tensors as large as the parameters.

    method:
        "exact": a second backward pass, H_b g = ∂(g_bᵀ v)/∂θ at v = g held fixed.  Attention runs in PyTorch's math
            kernel, the only one with a second derivative.
        "finite_difference": H g ≈ ‖g‖ (∇L(θ + ε ĝ) − ∇L(θ − ε ĝ)) / 2ε, ĝ = g/‖g‖, ε = eps · ‖θ‖, error O(ε²).  Two
            ordinary backward passes; the weights move and are put back bit for bit.
        "auto": exact, and where PyTorch says that an op has no second derivative or that memory ran out, finite
            differences.
    eps: step of the finite difference, as a fraction of the parameters' norm.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape; buffers are not trained and do not count.
    Unit: loss² per (weight unit)², i.e. that of ‖g‖².
    Errors: InputsError without data or loss; CriterionError where the loss or a derivative is NaN or infinite, for an
    unknown method, for "exact" where an op has no second derivative, and for finite differences of half-precision
    weights.
    Source: Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow (GraSP), ICLR 2020;
    structured and iterated for diffusion models by Wan et al., arXiv 2501.09464; preserving: Lubana and Dick, A
    Gradient Flow Framework for Analyzing Network Pruning, ICLR 2021.
    """

    method: Method = "auto"
    eps: float = 1e-4
    preserve: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    reduction: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise CriterionError(f"GradFlow(method={self.method!r}): use one of {', '.join(map(repr, METHODS))}")
        if not self.eps > 0:
            raise CriterionError(f"GradFlow(eps={self.eps}): the step must be positive, such as 1e-4")

    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Saliency θ (H g) of every parameter, or its absolute value."""
        product = ctx.hessian_gradient(self.method, self.eps)
        with torch.no_grad():
            signed = {name: p * product[name] for name, p in ctx.parameters.items()}
            return {name: s.abs() for name, s in signed.items()} if self.preserve else signed
