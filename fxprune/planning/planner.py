"""`plan`: the channels whose removal meets a budget, lowest scores first, every constraint satisfied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fxprune.arguments import Kind, takes
from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.blocks import Chosen, plan_depth
from fxprune.planning.budget import Budget
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import require_cost
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.latency import Left, latency_of
from fxprune.planning.legal import legal_graph, require_format
from fxprune.planning.limits import NONE, Limits
from fxprune.planning.names import require_shares
from fxprune.planning.options import gathered
from fxprune.planning.plan import Plan
from fxprune.planning.ranking import Curves, per_cost, scope_of
from fxprune.planning.rounding import best_width
from fxprune.planning.selection import checked, selected
from fxprune.planning.selectors import Ignore, require_known
from fxprune.scoring.score import Scores

SCORES = Kind("fxprune.Scores, or a dict of group name -> scores", lambda v: isinstance(v, (Scores, Mapping)))
NEAR, TRIES = 0.01, 6  # how near to the asked ratio a measured plan is, and how often it is planned
FAR = 0.02  # what a plan may miss where the limits allow no more


@takes(graph=ChannelGraph, scores=SCORES)
def plan(
    graph: ChannelGraph,
    scores: Scores | Mapping[str, Floats],
    ratio: float | None = None,
    of: str = "params",
    *,
    target: float | None = None,
    ratios: Mapping[str, float] | Curves | None = None,
    ignore: Ignore = (),
    round_to: int | str = 1,
    min_width: int = 1,
    max_ratio: float | None = None,
    exact_norms: bool = False,
    scope: str | None = None,
    legal_for: str | None = None,
    shape: str | Callable[..., Any] = "free",
    granularity: str = "channel",
    budget: Budget | None = None,
    limits: Limits | None = None,
) -> Plan:
    """Choose the channels, or the blocks, that go.

    Args:
        scores: one score a channel and group (low goes first), from `fxprune.score`.
        ratio: share of `of` to remove, in [0, 1).
        of: "params", "macs" (multiply-accumulates of one forward on the example inputs), "channels", "memory" (bytes
            of weights and of activations where these take most) or "latency" (microseconds of one forward on the
            device of the weights, from measured times; see `fxprune.planning.latency`).
        target: in place of `ratio`, the cost to end at, in units of `of` (20e6 parameters, say).
        ratios: name or glob of tensors, modules or groups -> share of the channels that go, whatever their scores,
            of all groups whose channels these make (a residual stream is made by many); the other groups meet the
            budget (or lose nothing, where neither `ratio` nor `target` is given). The first pattern that matches
            counts; groups tied by a norm lose one share, the mean of those asked. Or a table of
            `fxprune.sensitivity`, by which the budget does the same harm to every group.
        ignore: what stays as it is: names or globs of tensors, modules or groups, and module types such as `nn.Conv2d`.
        round_to: widths are kept multiples of this where constraints let them; "auto": the largest multiple that
            suits the device and costs little (see `fxprune.planning.rounding`).
        min_width: channels (heads) that every group keeps, or all of them where it has fewer.
        max_ratio: largest share of its channels that one group may lose, unless `ratios` says otherwise; None: 0.9, or
            all but one channel where the ratio cannot be reached otherwise.
        exact_norms: never regroup a group norm, and keep channels over which a mean, a maximum and the like is taken.
        scope: "knapsack" ranks all channels together by what is lost per unit of `of` (see `ranking.per_cost`),
            "global" by score alone, "local" each group by itself, "isomorphic" groups of the same structure together,
            where every such class loses the same share. None: "knapsack" where the scores add up (`Scores.additive`;
            not for memory), else "global".
        legal_for: widths that a quantiser takes afterwards, where constraints let them; see `fxprune.planning.legal`.
        shape: "free" alone: a graph holds no constructor; `fxprune.prune(model, shape=...)` makes stock shapes.
        granularity: "channel"; "block": residual branches go whole, none is narrowed; "both": blocks for at most half
            of the budget, channels for the rest.
        budget: `ratio`, `of` and `target` in one value, in their place.
        limits: `ratios`, `ignore`, `round_to`, `min_width`, `max_ratio`, `exact_norms` and `scope` in one value, in
            their place.

    Raises:
        BudgetError: where the budget is out of range or cannot be reached; tells how far one can go. Or a name in
            `ratios` has no effect.
        CriterionError: where scores are missing or not finite.
        InputsError: where `ignore` names nothing in the model or holds something else than names and types, or `limits`
            (or `budget`) is given beside a keyword that it holds.
    """
    keywords: dict[str, Any] = {"ratios": ratios, "ignore": ignore, "round_to": round_to, "min_width": min_width}
    keywords |= {"max_ratio": max_ratio, "exact_norms": exact_norms, "scope": scope, "legal_for": legal_for}
    keywords["shape"] = shape
    asked, limits = (
        gathered(Budget, budget, {"ratio": ratio, "of": of, "target": target}),
        gathered(Limits, limits, keywords),
    )
    require_known(graph, limits.ignore)
    return planned(graph, scores, asked, limits, granularity)


def planned(
    graph: ChannelGraph,
    scores: Scores | Mapping[str, Floats],
    budget: Budget,
    limits: Limits = NONE,
    granularity: str = "channel",
    chosen: Chosen | None = None,
) -> Plan:
    """`plan`, its arguments gathered; `chosen` chooses the blocks without scores (see `plan_depth`)."""
    require_format(limits.legal_for)
    graph = legal_graph(graph, limits.legal_for)
    of, costs = budget.of, CostModel(graph)
    if limits.shape != "free":
        raise BudgetError(
            f"shape={limits.shape!r} asks the model's constructor, which a graph does not hold: call "
            "fxprune.prune(model, shape=...), whose report has the plan: fxprune.report(small).plan"
        )
    if limits.stated and granularity == "block":
        raise BudgetError('granularity="block" narrows nothing, so ratios= has no effect; use granularity="both"')
    if graph.whole is None:  # names may be of blocks that are taken out already
        require_shares(graph, limits.stated)
    limits = replace(limits, scope=scope_of(limits.scope, scores, of))
    if budget.ratio is not None or budget.target is not None:
        require_cost(costs, of)
    asked = budget.share(costs)
    if granularity != "channel":

        def channels(left: ChannelGraph, values: Mapping[str, Floats], ratio: float) -> Plan:
            return planned(left, values, Budget(ratio, of), limits)

        return plan_depth(graph, scores, asked, of, limits.ignore, granularity, channels, chosen)
    if not isinstance(scores, Scores):
        scores = Scores(scores, "given scores")
    values, criterion = checked(graph, scores.values), scores.criterion
    if limits.scope == "knapsack":
        values = per_cost(costs, of, values, scores.unscored)
    if asked is None and not limits.stated:
        raise BudgetError(f"no budget is given: pass ratio=, the share of {of} to remove, or target=, what is to stay")

    def attempt(width: int, share: float | None) -> Plan:
        cut = selected(costs, values, replace(limits, round_to=width), of, share)
        return Plan.of_cut(costs, cut, cut.share if share is None else share, of, criterion)

    def rounded(width: int) -> Plan:
        if of != "latency" or asked is None:
            return attempt(width, asked)
        return settle(lambda share: attempt(width, share), graph, asked)

    if limits.round_to == "auto":
        return best_width(rounded, graph, values, limits.scope or "global")
    return rounded(limits.multiple)


def settle(attempt: Callable[[float], Plan], graph: ChannelGraph, ratio: float) -> Plan:
    """A plan that removes `ratio` of the measured latency.

    Args:
        attempt: a plan that removes that share of the predicted latency.

    Raises:
        BudgetError: what the first attempt raises; or the limits allow what was predicted, which is less by the clock.
    """
    latency, asked = latency_of(graph), ratio
    best: Plan | None = None
    for _ in range(TRIES):
        try:
            made = attempt(asked)
        except BudgetError:
            if best is None:
                raise
            if (most := best.achieved) < ratio - FAR:
                raise BudgetError(
                    f"{ratio:.1%} of latency cannot be removed from this {graph.model_class}: with these limits the "
                    f"measured time falls by {most:.1%} at most. Ask for ratio={most:.2f}, or loosen a limit",
                    reachable=most,
                ) from None
            break
        dense, left = latency.at(Left(made.kept(graph), made.norm_groups))
        share = 1 - left / dense
        made = replace(made, ratio=ratio, achieved=share, costs={**made.costs, "latency": (dense, left)})
        if best is None or abs(share - ratio) < abs(best.achieved - ratio):
            best = made
        if abs(share - ratio) <= NEAR * min(1.0, 2 * (1 - ratio)):  # of what is left, where little is left
            break
        asked = min(max(asked + ratio - share, 0.0), 0.999)
    assert best is not None
    return best
