"""Plans of several sizes, each of which removes all that the one before it does, and more.

One order of removals serves all sizes: each goes on from what the one before it took.  So all of them treat every norm
alike, exact where that comes near all of the budgets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.budget import Budget
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import require_cost
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.limits import Limits
from fxprune.planning.plan import Plan
from fxprune.planning.planner import planned, settle
from fxprune.planning.ranking import per_cost, scope_of, touched
from fxprune.planning.removals import Removals
from fxprune.planning.search import meet, queue
from fxprune.planning.selection import NEAR, checked, ordered
from fxprune.scoring.score import Scores


def nested_plans(
    graph: ChannelGraph, scores: Scores, ratios: Sequence[float], of: str, limits: Limits
) -> tuple[Plan, ...]:
    """One plan a ratio, in their order.

    Args:
        ratios: shares of `of` to remove, ascending.

    Raises:
        BudgetError: the largest cannot be reached; tells how far one can go.
    """
    costs = CostModel(graph)
    require_cost(costs, of)
    limits = replace(limits, scope=scope_of(limits.scope, scores, of))
    values = checked(graph, scores.values)
    if limits.scope == "knapsack":
        values = per_cost(costs, of, values, scores.unscored)
    every = frozenset(norm.node for norm in graph.facts.norm_groups)
    best: tuple[float, tuple[Plan, ...]] | None = None
    reachable = 0.0
    for cap in limits.caps:
        for regroup in (frozenset[str](), *([every] if every and not limits.exact_norms else [])):
            _, parts, keys = ordered(graph, values, limits, cap, regroup)
            order = _Order(costs, parts, keys, of, scores.criterion)
            made, reachable = order.filled(ratios), max(reachable, order.reachable)
            off = max(abs(plan.achieved - ratio) for plan, ratio in zip(made, ratios, strict=True))
            if best is None or off < best[0]:
                best = off, made
            if off <= NEAR:
                return made
    assert best is not None
    if best[1][-1].achieved < ratios[-1] - NEAR and reachable < ratios[-1] - 1e-9:
        planned(graph, scores, Budget(ratios[-1], of), limits)  # says how far one can go, and why
        raise BudgetError(
            f"one order of channels for all sizes takes {reachable:.1%} of {of} at most from this {graph.model_class}, "
            f"not {ratios[-1]:.1%}: ask for less, or make single models by fxprune.prune",
            reachable=reachable,
        )
    return best[1]


@dataclass(frozen=True)
class _Order:
    """The removals of all parts, with the keys by which they are taken."""

    costs: CostModel
    parts: list[Removals]
    keys: list[Floats]
    of: str
    criterion: str

    def filled(self, ratios: Sequence[float]) -> tuple[Plan, ...]:
        """A plan for every ratio, each on top of the one before it."""
        out: list[Plan] = []
        for ratio in ratios:
            attempt = functools.partial(self._on_top, out[-1] if out else None)
            out.append(settle(attempt, self.costs.graph, ratio) if self.of == "latency" else attempt(ratio))
        return tuple(out)

    @property
    def reachable(self) -> float:
        """The largest share of the cost that can go."""
        return meet(self.costs, self.of, queue(self.parts, self.keys, len(self.costs.graph.groups)), (), 1.0).reachable

    def _on_top(self, before: Plan | None, share: float) -> Plan:
        """The plan that removes a share of the cost, and what another one does."""
        counts = [0 if before is None else self._count(seq, before) for seq in self.parts]
        stated = [seq.first(n) for seq, n in zip(self.parts, counts, strict=True)]
        rest = [_after(seq, n) for seq, n in zip(self.parts, counts, strict=True)]
        keys = [key[n:] for key, n in zip(self.keys, counts, strict=True)]
        met = meet(self.costs, self.of, queue(rest, keys, len(self.costs.graph.groups)), stated, share)
        return Plan.of_cut(self.costs, met.below, share, self.of, self.criterion)

    def _count(self, seq: Removals, plan: Plan) -> int:
        """How many removals of a part a plan has taken."""
        names = [self.costs.graph.groups[g].name for g in touched(seq)]
        return int(np.searchsorted(seq.ends, sum(len(plan.removed.get(name, ())) for name in names)))


def _after(seq: Removals, n: int) -> Removals:
    """The removals from number `n` on."""
    first = int(seq.ends[n])
    return Removals(seq.score[n:], seq.group[first:], seq.channel[first:], seq.ends[n:] - first)
