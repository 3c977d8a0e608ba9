"""Plans that keep to several budgets at once, made from one share a part.

    parts       what can shrink by itself (see `fxprune.planning.removals`), the lowest scores first
    shares      how much of each part is asked to go; scaled until every budget just holds:

        s(t) = t s                          0 <= t <= 1   less goes where less will do
        s(t) = s + (t - 1) (most - s)       1 <= t <= 2   more of everything where it will not

Then what can stay is given back, in single removals, so that none more could.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.budget import Budget
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import MEASURES, dense_cost, require_cost
from fxprune.planning.latency import Left, latency_of
from fxprune.planning.limits import Limits
from fxprune.planning.plan import Plan
from fxprune.planning.planner import planned
from fxprune.planning.ranking import Curves, Floats, lost, per_cost, scope_of, touched
from fxprune.planning.removals import Removals, sequences
from fxprune.planning.search import Cut
from fxprune.planning.selection import checked, reduced_groups
from fxprune.planning.selectors import ignored
from fxprune.scoring.score import Scores

HALVINGS = 40  # of the scale: beyond the number of removals that any part has
RAISED = 12  # times at most that the planner is asked for a little more
TIGHTENED = 6  # times at most that a measured latency is tried again with less
ROUNDING = 1e-9


def stays(costs: CostModel, budgets: Mapping[str, float]) -> dict[str, float]:
    """Measure -> the share of its cost that may stay.

    Args:
        budgets: measure -> the most that may stay: up to 1 a share of the cost, above that in the measure's units.

    Raises:
        BudgetError: a measure is unknown or means nothing for the model, or a budget is out of range.
    """
    if not budgets:
        raise BudgetError('budgets={} asks for nothing; pass the most that may stay, such as budgets={"params": 0.6}')
    out = {}
    for measure, most in budgets.items():
        if measure not in MEASURES:
            raise BudgetError(f"budgets={{{measure!r}: ...}} is unknown; choose among {', '.join(MEASURES)}")
        require_cost(costs, measure)
        dense = dense_cost(costs, measure)
        if not 0 < most <= max(1.0, dense):
            raise BudgetError(
                f"budgets={{{measure!r}: {most:,}}} is outside (0, {dense:,.0f}]: it is the most that may stay, a "
                f"share such as 0.6, or of the {dense:,.0f} {measure} so many, such as {0.6 * dense:.3g}"
            )
        out[measure] = float(most) if most <= 1 else most / dense
    return out


@dataclass(frozen=True)
class Space:
    """All plans that keep to some budgets, by the share of each part that is asked to go.

    Attributes:
        stay: measure -> the share of its cost that may stay; the first is what plans are told to be made for.
        parts: what can shrink by itself.
    """

    costs: CostModel
    stay: Mapping[str, float]
    parts: tuple[Removals, ...]
    criterion: str

    @property
    def graph(self) -> ChannelGraph:
        """Whose plans they are."""
        return self.costs.graph

    @property
    def most(self) -> dict[str, float]:
        """Name of each part (of its first group) -> the largest share of it that may go."""
        names = (self.graph.groups[touched(seq)[0]].name for seq in self.parts)
        return {n: float(lost(self.graph, seq)[-1]) for n, seq in zip(names, self.parts, strict=True)}

    def shares(self, plan: Plan) -> dict[str, float]:
        """What a plan takes of every part."""
        out = {}
        for (name, most), seq in zip(self.most.items(), self.parts, strict=True):
            groups = [self.graph.groups[g].name for g in touched(seq)]
            gone = sum(len(plan.removed.get(g, ())) for g in groups)
            out[name] = min(most, gone / sum(plan.sizes[g] for g in groups))
        return out

    def plan(self, shares: Mapping[str, float]) -> Plan:
        """The plan nearest to some shares that keeps to every budget and could give nothing back.

        Raises:
            BudgetError: the limits do not allow any, or by the clock none was found.
        """
        asked = np.array([shares[name] for name in self.most])
        stay = dict(self.stay)
        for _ in range(TIGHTENED):
            made = self.timed(self._plan(self._counts(asked, stay)))
            if (over := self.excess(made)) <= 1 + ROUNDING:
                return made
            stay["latency"] /= over * 1.002
        raise BudgetError(f"a latency of {self.stay['latency']:.1%} was predicted, and {over:.3f} times that measured")

    def require(self) -> None:
        """Raise `BudgetError` where not all budgets are in reach."""
        self._counts(np.array(list(self.most.values())), self.stay)

    def excess(self, plan: Plan) -> float:
        """How much a plan takes of the budget that it is furthest beyond, or nearest to; 1 is all of it."""
        return max(plan.costs[m][1] / plan.costs[m][0] / share for m, share in self.stay.items())

    def timed(self, plan: Plan) -> Plan:
        """The plan with its latency as measured, where that is a budget."""
        if "latency" not in self.stay:
            return plan
        at = latency_of(self.graph).at(Left(plan.kept(self.graph), plan.norm_groups))
        made = replace(plan, costs={**plan.costs, "latency": at})
        return replace(made, achieved=1 - at[1] / at[0]) if plan.of == "latency" else made

    def _plan(self, counts: Sequence[int]) -> Plan:
        taken = [seq.first(n) for seq, n in zip(self.parts, counts, strict=True)]
        group, channel = (np.concatenate([np.zeros(0, np.int64), *(getattr(s, k) for s in taken)]) for k in CUT)
        removed, of = self._removed(counts), next(iter(self.stay))
        share = 1 - self.costs.of(of, removed) / dense_cost(self.costs, of)
        made = Plan.of_cut(self.costs, Cut(group, channel, removed, share), 1 - self.stay[of], of, self.criterion)
        more = {m: (dense_cost(self.costs, m), self.costs.of(m, removed)) for m in self.stay}
        return replace(made, costs={**made.costs, **more})

    def _removed(self, counts: Sequence[int]) -> Floats:
        taken = [seq.group[: seq.ends[n]] for seq, n in zip(self.parts, counts, strict=True)]
        every = np.concatenate([np.zeros(0, np.int64), *taken])
        return np.bincount(every, minlength=len(self.graph.groups)).astype(float)

    def _holds(self, counts: Sequence[int], stay: Mapping[str, float]) -> bool:
        removed = self._removed(counts)
        return all(self.costs.of(m, removed) <= s * dense_cost(self.costs, m) * (1 + ROUNDING) for m, s in stay.items())

    def _counts(self, asked: Floats, stay: Mapping[str, float]) -> list[int]:
        """How many removals of each part go."""
        most = np.array(list(self.most.values()))
        ends = [lost(self.graph, seq) for seq in self.parts]

        def at(t: float) -> list[int]:
            shares = asked * min(t, 1.0) + (most - asked) * max(t - 1.0, 0.0)
            return [int((end <= s + ROUNDING).sum()) for end, s in zip(ends, shares, strict=True)]

        low, high = 0.0, 2.0
        if not self._holds(at(high), stay):
            raise BudgetError(self._too_far(at(high)))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._holds(at(middle), stay) else (middle, high)
        return self._given_back(at(high), stay)

    def _given_back(self, counts: list[int], stay: Mapping[str, float]) -> list[int]:
        """Without the removals that no budget needs: one of each part in turn, the dearest channels first."""
        order = sorted((p for p, n in enumerate(counts) if n), key=lambda p: -float(self.parts[p].score[counts[p] - 1]))
        while order:
            order = [p for p in order if self._gives_back(counts, p, stay)]
        return counts

    def _gives_back(self, counts: list[int], part: int, stay: Mapping[str, float]) -> bool:
        """Take back the last removal of a part, where there is one and all budgets still hold."""
        if not counts[part]:
            return False
        counts[part] -= 1
        if self._holds(counts, stay):
            return True
        counts[part] += 1
        return False

    def _too_far(self, counts: Sequence[int]) -> str:
        removed = self._removed(counts)
        reached = {m: self.costs.of(m, removed) / dense_cost(self.costs, m) for m in self.stay}
        told = ", ".join(f"{m} to {reached[m]:.1%} (asked {share:.1%})" for m, share in self.stay.items())
        return (
            f"budgets= cannot all be met by this {self.graph.model_class}: with these limits one can go down in {told}"
            ". Ask for less, or loosen a limit"
        )


CUT = ("group", "channel")


def space_of(
    graph: ChannelGraph, scores: Scores, budgets: Mapping[str, float], limits: Limits, reach: bool = True
) -> Space:
    """The space of plans that keep to some budgets and limits, of the first of `limits.caps` that allows any.

    Norms are kept exact where the planner would keep them so.

    Args:
        reach: whether there must be any such plan.

    Raises:
        BudgetError: the budgets are out of range or out of reach.
    """
    costs = CostModel(graph)
    stay = stays(costs, budgets)
    of = next(iter(stay))
    values = checked(graph, scores.values)
    if scope_of(limits.scope, scores, of) == "knapsack":
        values = per_cost(costs, of, values, scores.unscored)
    regroup = _regrouped(graph, scores, stay, limits)
    short: BudgetError | None = None
    for cap in limits.caps:
        space = Space(costs, stay, tuple(_parts(graph, values, limits, cap, regroup)), scores.criterion)
        try:
            space.require()
            return space
        except BudgetError as e:
            short = e
    assert short is not None
    if reach:
        raise short
    return space


def _parts(
    graph: ChannelGraph, values: Mapping[str, Floats], limits: Limits, cap: float, regroup: frozenset[str]
) -> Iterator[Removals]:
    """The removals of every part; of a norm that has no exact ones they are regrouped, if the limits let them."""
    held = [not out for out in ignored(graph, limits.ignore)]
    if limits.exact_norms:
        held = [ok and not out for ok, out in zip(held, reduced_groups(graph), strict=True)]
    bounds = limits.bounds(cap, {})
    parts = sequences(graph, values, bounds, held, regroup)
    yield from parts
    if not limits.exact_norms:
        covered = {g for seq in parts for g in touched(seq)}
        rest = [ok and g not in covered for g, ok in enumerate(held)]
        yield from sequences(graph, values, bounds, rest, {norm.node for norm in graph.facts.norm_groups})


def _regrouped(graph: ChannelGraph, scores: Scores, stay: Mapping[str, float], limits: Limits) -> frozenset[str]:
    """Norms that the planner regroups to meet one of the budgets."""
    out: set[str] = set()
    for measure, share in stay.items():
        with suppress(BudgetError):
            out.update(planned(graph, scores, Budget(1 - share, measure), limits).regrouped)
    return frozenset(out)


class Plans(Protocol):
    """A space of plans, see `Space`."""

    @property
    def graph(self) -> ChannelGraph: ...
    @property
    def costs(self) -> CostModel: ...
    @property
    def stay(self) -> Mapping[str, float]: ...
    @property
    def most(self) -> dict[str, float]: ...
    def shares(self, plan: Plan) -> dict[str, float]: ...
    def plan(self, shares: Mapping[str, float]) -> Plan: ...
    def excess(self, plan: Plan) -> float: ...
    def timed(self, plan: Plan) -> Plan: ...


def seeds(
    space: Plans, scores: Scores, limits: Limits, granularity: str, table: Curves | None
) -> Iterator[tuple[str, Plan]]:
    """What is tried first, with its name: the planner's own choice for every measure, and what a table says."""
    for measure in space.stay:
        if (made := _asked(space, scores, measure, limits)) is not None:
            yield f"planned by {measure}", made
        if granularity == "both" and (made := _asked(space, scores, measure, limits, granularity)) is not None:
            yield f"planned by {measure}, with blocks", made
    if table is not None:
        measure = next(iter(space.stay))
        if (made := _asked(space, scores, measure, replace(limits, ratios=table))) is not None:
            yield "by sensitivity", made


def _asked(space: Plans, scores: Scores, measure: str, limits: Limits, granularity: str = "channel") -> Plan | None:
    """The planner's choice by one measure, a little more each time until all budgets hold; None where none does."""
    stay = space.stay[measure]
    for _ in range(RAISED):
        try:
            made = planned(space.graph, scores, Budget(1 - stay, measure), limits, granularity)
        except BudgetError:
            return None
        dense = {m: dense_cost(space.costs, m) for m in space.stay}
        left = CostModel(space.graph.without(made.blocks))
        removed = np.array([len(made.removed.get(g.name, ())) for g in left.graph.groups], float)
        counted = {m: (dense[m], left.of(m, removed)) for m in space.stay if m not in made.costs}
        made = space.timed(replace(made, costs={**made.costs, **counted}))
        if (over := space.excess(made)) <= 1 + ROUNDING:
            return made
        stay = max(stay / max(over, 1.0005), ROUNDING)
    return None
