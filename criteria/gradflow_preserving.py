"""Gradient flow, preserved: prune what changes the gradient's norm least, up or down."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.criteria.gradflow import GradFlow


@dataclass(frozen=True)
class GradFlowPreserving(GradFlow):
    """|θ · (H g)|, summed over a channel's elements: `GradFlow(preserve=True)` under a name of its own.

        score(c) = Σ_{q ∈ E(c)} |θ_q (H g)_q|

    For networks that have been trained, where it did better than the signed form in every run so far (see the
    documentation's page on quality).  Needs, shape, unit and errors are those of `GradFlow`.

    Source: Lubana and Dick, A Gradient Flow Framework for Analyzing Network Pruning, ICLR 2021.
    """

    preserve: bool = True
