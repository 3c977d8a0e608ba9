"""First-order Taylor: how much the loss changes when a weight goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.context import Context


@dataclass(frozen=True)
class Taylor:
    """|θ ∂L/∂θ|, summed over a channel's elements.

        L(θ with θ_e = 0) − L(θ) = −θ_e g_e + O(θ_e²),   g = ∇L of the mean loss over all batches
        signed=False    score(c) =  Σ_{e ∈ E(c)} |θ_e g_e|    each weight's effect, whichever its direction
        signed=True     score(c) = −Σ_{e ∈ E(c)}  θ_e g_e     the predicted rise of the loss if the whole channel goes

    Both are pruned from the lowest: unsigned the channel whose weights matter least, signed the one whose removal is
    predicted to lower the loss most.  Effects of opposite sign cancel in the signed form.  Molchanov et al. square the
    sum over a filter, (Σ θ g)²; the absolute value inside the sum is what the structural pruners after them use.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape; buffers have no gradient and do not count.
    Unit: that of the loss.  One backward pass a batch.
    Errors: InputsError without data or loss; CriterionError where the loss or a gradient is NaN or infinite.
    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, equation 8.
    """

    signed: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    reduction: ClassVar[str] = "sum"

    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Saliency of every parameter."""
        gradients = ctx.gradients()
        with torch.no_grad():
            products = {name: p * gradients[name] for name, p in ctx.parameters.items()}
            return {name: -x if self.signed else x.abs() for name, x in products.items()}
