"""`of="latency"` keeps its word: planned anew until the finished network is as fast as was asked.

What a table of measured ops predicts is a sum; a network also spends time between its ops.  So the finished network is
timed beside the dense one, and where their ratio misses the asked one, so much of the table's time is asked for next:

    left' = left · asked / measured      (of what is left of the time)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from fxprune.errors import BudgetError, RewriteError, VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.budget import Budget
from fxprune.pruning.realize import Realized
from fxprune.pruning.timing import timed
from fxprune.reporting.speed import NEAR, Timing

TRIES = 4  # finished networks that are timed until one is as fast as was asked
LEAST = 1e-3  # of the time, that is left at least


def met(
    net: nn.Module, first: Realized, budget: Budget, again: Callable[[ChannelGraph, Budget], Realized]
) -> Realized:
    """The cut whose finished network comes nearest to the time that a budget of latency asks for, with its timing.

    Args:
        net: the dense model.
        first: the first try.
        again: another one, by a budget of the table's time.
    """
    best: tuple[Realized, Timing] | None = None
    cut = first
    for tries in range(1, TRIES + 1):
        timing = timed(net, cut.done.model, cut.graph, cut.plan)
        if timing is None:
            break
        timing = replace(timing, asked=_asked(budget, timing))
        best = min((x for x in (best, (cut, timing)) if x is not None), key=lambda x: abs(x[1].off))
        best = best[0], replace(best[1], tries=tries)
        if abs(timing.off) <= NEAR or tries == TRIES:
            break
        missed = (1 - _asked(budget, timing)) / (1 - timing.share)
        left = min(max((1 - cut.plan.achieved) * missed, LEAST), 1.0)
        try:
            cut = again(first.graph, Budget(1 - left, budget.of))
        except (BudgetError, RewriteError, VerifyError):  # no further: the nearest so far is told as it is
            break
    return first if best is None else _told(*best)


def _asked(budget: Budget, timing: Timing) -> float:
    """The share of the time that is to go; a target is in microseconds."""
    if budget.target is not None:
        return max(0.0, 1 - budget.target / (timing.before * 1e6))
    assert budget.ratio is not None
    return budget.ratio


def _told(cut: Realized, timing: Timing) -> Realized:
    """With a plan that says what the clock says, in microseconds."""
    assert timing.asked is not None
    costs = {**cut.plan.costs, "latency": (timing.before * 1e6, timing.after * 1e6)}
    plan = replace(cut.plan, ratio=timing.asked, achieved=timing.share, costs=costs)
    return replace(cut, plan=plan, timing=timing)
