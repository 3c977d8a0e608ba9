"""Random: the baseline that every criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.scoring.context import Context


@dataclass(frozen=True)
class Random:
    """One uniform number in [0, 1) a channel, from the seed alone.

        score(c) ~ U[0, 1), independent

    Needs neither data nor a loss; does not look at the weights.  Shape: one score a channel of each group, float64,
    without unit.  The numbers follow the order of the graph's groups, so `seed=` repeats them.  Raises nothing.
    Source: the usual baseline; Mittal et al., Recovering from Random Pruning, WACV 2018, shows that it is a strong one.
    """

    weights: ClassVar[bool] = False  # it works on the meta device, too

    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Group name -> one score a channel."""
        return {g.name: torch.rand(len(g), dtype=torch.float64, generator=ctx.generator) for g in ctx.graph.groups}
