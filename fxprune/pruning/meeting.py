"""`of="latency"` keeps its word: planned anew until the finished network is as fast as was asked.

What a table of measured ops predicts is a sum; a network also spends time between its ops.  So the finished network is
timed beside the dense one, and where their ratio misses the asked one, another share x of the table's time is to be
left, y by the clock:

    x' = x · asked / y                                           after the first try
    x' = x + (asked − y) · (x − x_before) / (y − y_before)        after the others, the secant
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from fxprune.errors import BudgetError, RewriteError, VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.budget import Budget
from fxprune.pruning.attempt import Realized
from fxprune.pruning.timing import timed
from fxprune.reporting.speed import NEAR, Timing

TRIES = 4  # finished networks that are timed until one is as fast as was asked
LEAST = 1e-3  # of the time, that is left at least


def met(net: nn.Module, first: Realized, budget: Budget, again: Callable[[ChannelGraph, Budget], Realized]) -> Realized:
    """The cut whose finished network comes nearest to the time that a budget of latency asks for, with its timing.

    Args:
        net: the dense model.
        first: the first try.
        again: another one, by a budget of the table's time.
    """
    best: tuple[Realized, Timing] | None = None
    cut, seen = first, []
    for tries in range(1, TRIES + 1):
        timing = timed(net, cut.done.model, cut.graph, cut.plan)
        if timing is None:
            break
        timing = replace(timing, asked=_asked(budget, timing))
        best = min((x for x in (best, (cut, timing)) if x is not None), key=lambda x: abs(x[1].off))
        best = best[0], replace(best[1], tries=tries)
        if abs(timing.off) <= NEAR or tries == TRIES:
            break
        seen.append((1 - cut.plan.achieved, 1 - timing.share))
        try:
            cut = again(first.graph, Budget(1 - _left(seen[-2:], 1 - _asked(budget, timing)), budget.of))
        except (BudgetError, RewriteError, VerifyError):  # no further: the nearest so far is told as it is
            break
    return first if best is None else _told(*best)


def _left(seen: list[tuple[float, float]], asked: float) -> float:
    """What should be left of the table's time, after (left by the table, left by the clock) of the last tries."""
    (x, y), (x0, y0) = seen[-1], seen[0]
    slope = (x - x0) / (y - y0) if (x - x0) * (y - y0) > 0 else x / y
    return min(max(x + (asked - y) * slope, LEAST), 1.0)


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
