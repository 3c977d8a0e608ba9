"""`plan`: the channels whose removal meets a budget, lowest scores first, every constraint satisfied."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Container, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.planning.limits import Constraints, split
from fxprune.planning.costs.model import COUNTED, MEASURES, CostModel
from fxprune.planning.blocks import plan_depth
from fxprune.errors import BudgetError, CriterionError
from fxprune.graph.labels import Bools
from fxprune.planning.removals import Moves, sequences
from fxprune.planning.plan import NormChange, Plan
from fxprune.planning.ranking import Curves, by_harm, keys, per_cost, scope_of
from fxprune.planning.rounding import best_width, multiple
from fxprune.scoring.score import Scores
from fxprune.planning.search import Cut, Met, Queue, meet, queue
from fxprune.planning.selectors import Ignore, as_items, ignored

Floats = npt.NDArray[np.float64]
NEAR = 0.005  # how far from the asked ratio an exact plan may be before norms are regrouped


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
    granularity: str = "channel",
) -> Plan:
    """Choose the channels, or the blocks, that go.

    Args:
        scores: one score a channel and group (low goes first), from `fxprune.score`.
        ratio: share of `of` to remove, in [0, 1).
        of: "params", "macs" (multiply-accumulates of one forward on the example inputs), "channels", "memory" (bytes
            of weights and of activations where these take most) or "latency" (microseconds of one forward on the
            device of the weights, from measured times; see `fxprune.planning.costs.latency`).
        target: in place of `ratio`, the cost to end at, in units of `of` (20e6 parameters, say).
        ratios: name or glob of groups -> share of their channels that goes, whatever their scores; the other groups
            meet the budget (or lose nothing, where neither `ratio` nor `target` is given). The first pattern that
            matches counts; groups tied by a norm lose one share, the mean of those asked. Or a table of
            `fxprune.sensitivity`, by which the budget does the same harm to every group.
        ignore: what stays as it is: names or globs of tensors or modules, and module types such as `nn.Conv2d`.
        round_to: widths are kept multiples of this where constraints let them; "auto": the largest multiple that
            suits the device and costs little (see `fxprune.planning.rounding`).
        min_width: channels (heads) that every group keeps, or all of them where it has fewer.
        max_ratio: largest share of its channels that one group may lose, unless `ratios` says otherwise; None: 0.9, or
            all but one channel where the ratio cannot be reached otherwise.
        exact_norms: never regroup a group norm.
        scope: "knapsack" ranks all channels together by what is lost per unit of `of` (see `ranking.per_cost`),
            "global" by score alone, "local" each group by itself, "isomorphic" groups of the same structure together,
            where every such class loses the same share. None: "knapsack" where the scores add up (`Scores.additive`;
            not for memory), else "global".
        granularity: "channel"; "block": residual branches go whole, none is narrowed; "both": blocks for at most half
            of the budget, channels for the rest.

    Raises:
        BudgetError: where the budget is out of range or cannot be reached; tells how far one can go.
        CriterionError: where scores are missing or not finite.
        InputsError: where `ignore` holds something else than names and types.
    """
    scope = scope_of(scope, scores, of)
    options = {k: v for k, v in locals().items() if k not in ("graph", "scores", "ratio", "target", "granularity")}
    others = Constraints(ratios, as_items(ignore), multiple(round_to), min_width, max_ratio, exact_norms, scope)
    cost = CostModel(graph)
    asked = asked_share(cost, ratio, target, of)
    if granularity != "channel":
        return plan_depth(graph, scores, asked, of, others.ignore, granularity, functools.partial(plan, **options))
    if not isinstance(scores, Scores):
        scores = Scores(scores, "given scores")
    values = _checked(graph, scores.values)
    if scope == "knapsack":
        values = per_cost(cost, of, values, scores.unscored)
    name = scores.criterion
    if asked is None and not others.stated:
        raise BudgetError(f"no budget is given: pass ratio=, the share of {of} to remove, or target=, what is to stay")

    def rounded(width: int) -> Plan:
        limits = replace(others, round_to=width)
        if of != "latency" or asked is None:
            return _planned(cost, values, limits, of, asked, name)
        from fxprune.planning.costs.latency import settle  # it plans to measure

        return settle(lambda share: _planned(cost, values, limits, of, share, name), graph, asked)

    return best_width(rounded, graph, values, scope) if round_to == "auto" else rounded(others.round_to)


def _planned(
    cost: CostModel, values: Mapping[str, Floats], limits: Constraints, of: str, asked: float | None, name: str
) -> Plan:
    met = _families(cost, values, limits, of, asked)
    best = met[0].below if asked is None else nearest_cut(met, asked)
    if asked is not None and best.share < asked - NEAR and (most := max(m.reachable for m in met)) < asked - 1e-9:
        raise BudgetError(_too_far(cost, values, limits, of, asked, most), reachable=most)
    if asked is not None and (least := min(m.least for m in met)) > asked + NEAR:
        raise BudgetError(f"ratios= alone takes {least:.1%} of {of}, more than the {asked:.1%} asked; lower its shares")
    return as_plan(cost.graph, cost, best, best.share if asked is None else asked, of, name)


def check_budget(ratio: float | None, target: float | None, of: str) -> None:
    """Raise `BudgetError` where a budget is wrong for any model."""
    if of not in MEASURES:
        raise BudgetError(f"of={of!r} is unknown; choose one of {', '.join(MEASURES)}")
    if ratio is not None and target is not None:
        raise BudgetError(f"ratio={ratio} and target={target} both set the budget; pass one of them")
    if ratio is not None and not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio} is outside [0, 1): it is the share of {of} to remove, such as 0.4")


def asked_share(cost: CostModel, ratio: float | None, target: float | None, of: str) -> float | None:
    """The share of the cost to remove, None where nothing is asked.

    Raises:
        BudgetError: where it is out of range.
    """
    check_budget(ratio, target, of)
    if target is None:
        return ratio
    total = cost.of(of, np.zeros(len(cost.graph.groups)))
    if not 0 < target <= total:
        raise BudgetError(
            f"target={target:,} is outside (0, {total:,.0f}]: it is what stays of the {total:,.0f} {of} of this "
            f"{cost.graph.model_class}, such as {0.6 * total:.3g}"
        )
    return 1 - target / total


def _checked(graph: ChannelGraph, values: Mapping[str, Floats]) -> dict[str, Floats]:
    if not graph.groups:
        causes = ", ".join(sorted({h.cause for h in graph.frozen()})[:4])
        raise BudgetError(
            f"nothing in this {graph.model_class} can be pruned ({causes}); see graph.frozen()", reachable=0.0
        )
    out = {}
    for g in graph.groups:
        v = np.asarray(values.get(g.name, ()), float)
        if v.shape != (len(g),) or not np.isfinite(v).all():
            raise CriterionError(
                f"scores of group {g.name!r} are {'not finite' if v.shape == (len(g),) else f'of shape {v.shape}'}; "
                f"one finite number for each of its {len(g)} channels is needed"
            )
        out[g.name] = v
    return out


def _families(
    cost: CostModel, values: Mapping[str, Floats], limits: Constraints, of: str, asked: float | None
) -> list[Met]:
    """The budget met with moves of one kind after the other, until one comes near: exact norms first."""
    every = {norm.node for norm in cost.graph.facts.norm_groups}
    met: list[Met] = []
    for cap, regroup in itertools.product(limits.caps, ((),) if limits.exact_norms else ((), every)):
        stated, free, order = _ordered(cost.graph, values, limits, cap, regroup)
        if asked is None:
            free, order = [], []
        met.append(meet(cost, of, queue(free, order, len(cost.graph.groups)), stated, asked or 0.0))
        if (asked or 0.0) - met[-1].below.share <= NEAR:
            break
    return met


def _ordered(
    graph: ChannelGraph, values: Mapping[str, Floats], limits: Constraints, cap: float, regroup: Container[str] = ()
) -> tuple[list[Moves], list[Moves], list[Floats]]:
    """The moves that are stated, the parts that are free, and the keys by which these are tried."""
    shares = limits.shares(graph)
    allowed = [not out for out in ignored(graph, limits.ignore)]
    parts = sequences(graph, values, limits.limits(cap, shares), allowed, regroup)
    stated, free = split(graph, parts, shares)
    if limits.table is not None:
        return stated, *by_harm(graph, free, limits.table)
    return stated, free, keys(graph, free, limits.scope)


def nearest_cut(met: list[Met], asked: float) -> Cut:
    """The cut next to the budget from below; the one above where the steps are coarse and it is nearer."""
    below = max((m.below for m in met), key=lambda cut: cut.share)
    above = min((m.above for m in met if m.above is not None), key=lambda cut: cut.share, default=None)
    if above is not None and asked - below.share > NEAR and above.share - asked < asked - below.share:
        return above
    return below


def as_plan(graph: ChannelGraph, cost: CostModel, cut: Cut, ratio: float, of: str, criterion: str) -> Plan:
    """The plan that takes the channels of a cut."""
    nothing = np.zeros(len(graph.groups))
    gone = {g: tuple(sorted(cut.channel[cut.group == g].tolist())) for g in np.flatnonzero(cut.removed).tolist()}
    made = Plan(
        model=graph.model_class,
        fingerprint=graph.fingerprint,
        removed={graph.groups[g].name: channels for g, channels in gone.items()},
        sizes={g.name: len(g) for g in graph.groups},
        ratio=ratio,
        of=of,
        achieved=cut.share,
        costs={k: (cost.of(k, nothing), cost.of(k, cut.removed)) for k in dict.fromkeys((*COUNTED, of))},
        criterion=criterion,
        traced=(graph.prefer[0] if graph.prefer else "heads", *graph.revisions),
    )
    return replace(made, norms=norm_changes(graph, made.kept(graph)))


def norm_changes(graph: ChannelGraph, keep: Bools) -> dict[str, NormChange]:
    """The number of groups that every group norm takes after pruning.

    Where each surviving norm group keeps equally many of its own members, the norm is exact; otherwise its channels
    are dealt into the largest number of groups, at most as many as before, that divides their count.
    """
    out = {}
    for norm in graph.facts.norm_groups:
        stays = keep[graph.component[norm.axis]].reshape(norm.groups, -1).sum(1)
        if stays.sum() == stays.size * stays.max(initial=0) and stays.max(initial=0) * norm.groups == len(norm.axis):
            continue
        alive = stays[stays > 0]
        if len(set(alive.tolist())) == 1:
            out[norm.node] = NormChange(norm.groups, len(alive), exact=True)
            continue
        total = int(stays.sum())
        after = max(d for d in range(1, norm.groups + 1) if total % d == 0)
        out[norm.node] = NormChange(norm.groups, after, exact=False)
    return out


def _too_far(
    cost: CostModel, values: Mapping[str, Floats], limits: Constraints, of: str, asked: float, reachable: float
) -> str:
    """How far one can go, what cannot go at all, and how far one could go without each of the limits."""
    graph = cost.graph
    held: dict[str, int] = {}
    for h in graph.frozen():
        if h.tensor in graph.parameters:
            held[h.cause] = held.get(h.cause, 0) + h.positions
    causes = ", ".join(f"{k} ({v} positions)" for k, v in sorted(held.items(), key=lambda x: -x[1])[:4])
    if of == "params" and (unused := _unused(graph)):
        causes = f"{unused:,} parameters that the forward does not use" + (f", {causes}" if causes else "")
    without = [
        f"{text} (without it {max(m.reachable for m in _families(cost, values, looser, of, 1.0)):.1%})"
        for text, looser in limits.loosened()
    ]
    left = (1 - reachable) * cost.of(of, np.zeros(len(graph.groups)))
    return (
        f"{asked:.1%} of {of} cannot be removed from this {graph.model_class}: at most {reachable:.1%} can, down to "
        f"{left:,.0f}. In the way: {causes or 'nothing frozen'}; limits: {', '.join(without) or 'none'}. "
        f"Ask for ratio={max(0.0, reachable - 0.005):.2f}, or loosen a limit"
    )


def _unused(graph: ChannelGraph) -> int:
    """Number of parameters that the forward does not use; most exports hold them, without a user."""
    traced = graph.traced
    live = (n for n in traced.graph.nodes if n.op == "placeholder" and (n.users or n in traced.outputs))
    used = {traced.tensors[n.name] for n in live if n.name in traced.tensors}
    return graph.outside + sum(math.prod(graph.shapes[name]) for name in graph.parameters - used)


def ranking(
    graph: ChannelGraph,
    values: Mapping[str, Floats],
    *,
    ratios: Mapping[str, float] | Curves | None = None,
    ignore: Ignore = (),
    round_to: int | str = 1,
    min_width: int = 1,
    max_ratio: float | None = None,
    exact_norms: bool = True,
    scope: str = "global",
) -> Queue:
    """The order in which `plan` would take channels, norms kept exact; groups with a stated share come first."""
    limits = Constraints(ratios, as_items(ignore), multiple(round_to), min_width, max_ratio, True, scope)
    stated, free, order = _ordered(graph, _checked(graph, values), limits, limits.caps[0])
    first = [np.full(len(seq), -np.inf) for seq in stated]
    return queue([*stated, *free], [*first, *order], len(graph.groups))
