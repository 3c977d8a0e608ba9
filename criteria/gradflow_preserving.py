"""Gradient flow, preserved: prune what changes the gradient's norm least, up or down."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxprune.criteria.gradflow import GradFlow


@dataclass(frozen=True)
class GradFlowPreserving(GradFlow):
    """|θ · (H g)|, summed over a channel's elements: `GradFlow(horizon=math.inf, power=1)` by name.

        score(c) = Σ_{q ∈ E(c)} |θ_q (H g)_q|

    What a removal costs at once is left out, and only what it takes from the flow counts.  Before training that does
    better than `gradflow` now and then, after training no better in any run so far.  Needs, shape and errors are those
    of `GradFlow`; the unit is loss² per weight², that of ‖g‖².

    Source: Lubana and Dick, A Gradient Flow Framework for Analyzing Network Pruning, ICLR 2021.
    """

    horizon: float = math.inf
    power: float = 1.0
