"""A criterion for fxprune: `fxprune.prune(model, criterion="variance", ...)` once this package is installed."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.scoring.context import Context


class Variance:
    """How far a channel's weights are from the mean of their tensor: those that are all alike go first."""

    @torch.no_grad()
    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Tensor name -> saliency of the tensor's shape; fxprune sums it into channels."""
        return {name: (p - p.mean()).square() for name, p in ctx.parameters.items()}
