"""Which channels go: the removals nearest to a budget, lowest scores first, norms kept exact where that will do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np
from torch import fx

from fxprune.errors import BudgetError, CriterionError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.costs.counted import Costs, amount, dense_cost
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.limits import Limits, stated_parts
from fxprune.planning.ranking import by_harm, keys, touched
from fxprune.planning.removals import Removals, clusters, paths, sequences
from fxprune.planning.search import Cut, Met, Queue, meet, queue
from fxprune.planning.selectors import ignored

Path: TypeAlias = Mapping[int, float]
ATTEMPTS = 64  # at paths to balanced sets, about
NEAR = 0.005  # how far from the asked ratio an exact plan may be before norms are regrouped


def selected(costs: Costs, values: Mapping[str, Floats], limits: Limits, of: str, asked: float | None) -> Cut:
    """The channels to remove; with `asked` None those that `limits.ratios` states, and no more.

    Args:
        values: one score a channel, by group name; checked.
        asked: the share of `of` to remove.

    Raises:
        BudgetError: the share cannot be reached; tells how far one can go.
    """
    met = _families(costs, values, limits, of, asked)
    if asked is None:
        return met[0].below
    best = nearest_cut(met, asked)
    if best.share < asked - NEAR and (most := max(m.reachable for m in met)) < asked - 1e-9:
        raise BudgetError(_too_far(costs, values, limits, of, asked, most), reachable=most)
    if (least := min(m.least for m in met)) > asked + NEAR:
        raise BudgetError(f"ratios= alone takes {least:.1%} of {of}, more than the {asked:.1%} asked; lower its shares")
    return best


def checked(graph: ChannelGraph, values: Mapping[str, Floats]) -> dict[str, Floats]:
    """Scores, found to be one finite number for every channel.

    Raises:
        BudgetError: nothing can be pruned.
        CriterionError: scores are missing or not finite.
    """
    if not graph.groups:
        causes = sorted({h.cause for h in graph.frozen()})
        raise BudgetError(
            f"nothing in this {graph.model_class} can be pruned ({', '.join(causes[:4])}); see graph.frozen()"
            f"{_releasable(graph) if 'reaches the output' in causes else ''}",
            reachable=0.0,
        )
    out = {}
    for g in graph.groups:
        try:
            v = np.asarray(values.get(g.name, ()), float)
        except (TypeError, ValueError) as e:
            raise CriterionError(f"scores of group {g.name!r} are no numbers: {e}") from e
        if v.shape != (len(g),) or not np.isfinite(v).all():
            raise CriterionError(
                f"scores of group {g.name!r} are {'not finite' if v.shape == (len(g),) else f'of shape {v.shape}'}; "
                f"one finite number for each of its {len(g)} channels is needed"
            )
        out[g.name] = v
    return out


def _releasable(graph: ChannelGraph) -> str:
    """What lets go of channels that some of several outputs hold."""
    tensors = sum(isinstance(o, fx.Node) for o in graph.traced.outputs)
    if tensors < 2:
        return ""
    return (
        f". It returns {tensors} tensors: outputs=lambda out: ... names those that count, and the others hold nothing"
    )


def _families(costs: Costs, values: Mapping[str, Floats], limits: Limits, of: str, asked: float | None) -> list[Met]:
    """The budget met with removals of one kind after the other, until one comes near: exact norms first."""
    graph, ratio = costs.graph, asked or 0.0
    every = {norm.node for norm in graph.facts.norm_groups}

    def attempt(cap: float, regroup: Collection[str] = (), path: Path | None = None) -> Met:
        stated, free, order = ordered(graph, values, limits, cap, regroup, path)
        if asked is None:
            free, order = [], []
        return meet(costs, of, queue(free, order, len(graph.groups)), stated, ratio)

    met: list[Met] = []
    for cap in limits.caps:
        met.append(attempt(cap))
        if not _near(met[-1], ratio) and met[-1].reachable >= ratio:
            met += _balanced(graph, values, functools.partial(attempt, cap, ()), ratio)
        if not any(_near(m, ratio) for m in met) and not limits.exact_norms:
            met.append(attempt(cap, every))
        if any(_near(m, ratio) for m in met):
            break
    return met


def _balanced(
    graph: ChannelGraph, values: Mapping[str, Floats], attempt: Callable[[Path], Met], ratio: float
) -> list[Met]:
    """The budget met on paths to balanced sets: the same for all norms, then another for one norm after the other.

    Where one comes near, only the one whose channels score lowest in all.
    """
    tried: list[tuple[Path, Met]] = []
    first = [min(members) for members, norms in clusters(graph) if norms]
    for share in paths(graph):
        tried.append((path := dict.fromkeys(first, share), attempt(path)))
    for g in first if len(first) > 1 else ():
        if not tried or any(_near(m, ratio) for _, m in tried) or len(tried) > ATTEMPTS:
            break
        best, _ = max(tried, key=lambda made: made[1].below.share)
        for share in paths(graph):
            tried.append((path := {**best, g: share}, attempt(path)))
    met = [m for _, m in tried]
    near = [m for m in met if _near(m, ratio)]
    return [min(near, key=lambda m: _worth(graph, values, nearest_cut([m], ratio)))] if near else met


def _near(met: Met, asked: float) -> bool:
    return abs(asked - nearest_cut([met], asked).share) <= NEAR


def _worth(graph: ChannelGraph, values: Mapping[str, Floats], cut: Cut) -> float:
    """The scores of what goes, summed."""
    return sum(float(values[graph.groups[g].name][cut.channel[cut.group == g]].sum()) for g in np.unique(cut.group))


def ordered(
    graph: ChannelGraph,
    values: Mapping[str, Floats],
    limits: Limits,
    cap: float,
    regroup: Collection[str] = (),
    path: Path | None = None,
) -> tuple[list[Removals], list[Removals], list[Floats]]:
    """The removals that are stated, the parts that are free, and the keys by which these are tried."""
    shares = limits.shares(graph)
    allowed = [not out for out in ignored(graph, limits.ignore)]
    if limits.exact_norms:
        allowed = [a and not out for a, out in zip(allowed, reduced_groups(graph), strict=True)]
    bounds = limits.bounds(cap, shares)
    parts = sequences(graph, values, bounds, allowed, regroup, path)
    free = [seq for seq in parts if not shares.keys() & touched(seq)]
    families = [parts]
    for share in paths(graph) if shares and not regroup else ():
        families.append(sequences(graph, values, bounds, allowed, path=dict.fromkeys(range(len(graph.groups)), share)))
    stated = stated_parts(graph, families, shares)
    if limits.table is not None:
        return stated, *by_harm(graph, free, limits.table)
    return stated, free, keys(graph, free, limits.scope or "global")


def reduced_groups(graph: ChannelGraph) -> list[bool]:
    """For every group whether a mean, a maximum and the like is taken over its channels."""
    over = np.zeros(int(graph.component.max()) + 1, bool)
    for r in graph.facts.reduced:
        over[graph.component[r.axis]] |= not r.exact
    return [bool(over[g.components].any()) for g in graph.groups]


def nearest_cut(met: list[Met], asked: float) -> Cut:
    """The cut next to the budget from below; the one above where the steps are coarse and it is nearer."""
    below = max((m.below for m in met), key=lambda cut: cut.share)
    above = min((m.above for m in met if m.above is not None), key=lambda cut: cut.share, default=None)
    if above is not None and asked - below.share > NEAR and above.share - asked < asked - below.share:
        return above
    return below


def _too_far(
    costs: Costs, values: Mapping[str, Floats], limits: Limits, of: str, asked: float, reachable: float
) -> str:
    """How far one can go, what cannot go at all, and how far one could go without each of the limits."""
    graph = costs.graph
    held: dict[str, int] = {}
    for h in graph.frozen():
        if h.tensor in graph.parameters:
            held[h.cause] = held.get(h.cause, 0) + h.positions
    causes = ", ".join(f"{k} ({v} positions)" for k, v in sorted(held.items(), key=lambda x: -x[1])[:4])
    if of == "params" and (unused := _unused(graph)):
        causes = f"{unused:,} parameters that the forward does not use" + (f", {causes}" if causes else "")
    without = [
        f"{text} (without it {max(m.reachable for m in _families(costs, values, looser, of, 1.0)):.1%})"
        for text, looser in limits.loosened()
    ]
    dense = dense_cost(costs, of)
    left = f"{amount(of, (1 - reachable) * dense)} of {dense:,.0f}"
    return (
        f"{asked:.1%} of {of} cannot be removed from this {graph.model_class}: at most {reachable:.1%} can, down to "
        f"{left}. In the way: {causes or 'nothing frozen'}; limits: {', '.join(without) or 'none'}. "
        f"Ask for ratio={max(0.0, reachable - 0.005):.2f}, or loosen a limit"
        f"{_releasable(graph) if 'reaches the output' in held else ''}"
    )


def _unused(graph: ChannelGraph) -> int:
    """Number of parameters that the forward does not use; most exports hold them, without a user."""
    traced = graph.traced
    live = (n for n in traced.graph.nodes if n.op == "placeholder" and (n.users or n in traced.outputs))
    used = {traced.tensors[n.name] for n in live if n.name in traced.tensors}
    return graph.outside + sum(math.prod(graph.shapes[name]) for name in graph.parameters - used)


def ranking(graph: ChannelGraph, values: Mapping[str, Floats], limits: Limits) -> Queue:
    """The order in which `plan` would take channels, norms kept exact; groups with a stated share come first."""
    stated, free, order = ordered(graph, checked(graph, values), limits, limits.caps[0])
    first = [np.full(len(seq), -np.inf) for seq in stated]
    return queue([*stated, *free], [*first, *order], len(graph.groups))
