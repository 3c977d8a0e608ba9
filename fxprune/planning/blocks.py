"""Which blocks go: the lowest saliency for what they cost, as many as the budget takes.

    rank(b) = Σ saliency of the tensors that go with b / cost that goes with b

Removing blocks overlaps (a nested one goes with the outer one; a modulation goes when its last reader does), so every
candidate set is counted anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fxprune.errors import BudgetError, CriterionError
from fxprune.graph.blocks import cut, cut_of, gone, taken_out
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost
from fxprune.planning.costs.macs import macs_of
from fxprune.planning.plan import Plan, with_blocks
from fxprune.planning.search import Cut
from fxprune.planning.selectors import Ignore, ignored_blocks
from fxprune.scoring.score import Scores

GRANULARITIES = ("channel", "block", "both")
SHARE = 0.5  # of a budget for blocks and channels together, the most that blocks take
FAR = 2 / 3  # of a budget, the least that whole blocks alone must reach
Floats: TypeAlias = npt.NDArray[np.float64]
Channels: TypeAlias = Callable[[ChannelGraph, Mapping[str, Floats], float], Plan]
Chosen: TypeAlias = Callable[..., "tuple[tuple[str, ...], float]"]


def plan_depth(
    graph: ChannelGraph,
    scores: Scores | Mapping[str, Any],
    asked: float | None,
    of: str,
    ignore: Ignore,
    granularity: str,
    channels: Channels,
    chosen: Chosen | None = None,
) -> Plan:
    """A plan that takes out blocks, and then channels of what is left.

    Args:
        scores: of `fxprune.score`, or a mapping that holds one number a block, too.
        asked: share of the cost to remove.
        channels: plans the channels of a graph for a ratio.
        chosen: chooses the blocks in place of `choose`, without scores.

    Raises:
        BudgetError: where nothing near the ratio can be reached.
        CriterionError: where a block has no finite score.
    """
    if granularity not in GRANULARITIES:
        raise BudgetError(f"granularity={granularity!r} is unknown; choose one of {', '.join(GRANULARITIES)}")
    if asked is None:
        raise BudgetError(f"granularity={granularity!r} needs a budget: pass ratio=, the share of {of} to remove")
    values, worth = (scores.values, scores.blocks) if isinstance(scores, Scores) else (scores, scores)
    only = granularity == "block"
    how = functools.partial(choose, worth=worth) if chosen is None else chosen
    names, share = how(graph, ratio=asked if only else asked * SHARE, of=of, ignore=ignore, nearest=only)
    left = graph.without(names)
    if only:
        made = _whole_width(left, asked, of)
    else:
        made = channels(left, scores_on(left, values), max(0.0, (asked - share) / (1 - share)))
    if chosen is not None and only:
        made = replace(made, criterion="recovery")
    criterion = scores.criterion if isinstance(scores, Scores) else made.criterion
    return with_blocks(graph, replace(made, ratio=asked, criterion=criterion), names)


def _whole_width(left: ChannelGraph, asked: float, of: str) -> Plan:
    """A plan that takes no channels."""
    none = np.zeros(0, np.int64)
    nothing = Cut(none, none, np.zeros(len(left.groups)), 0.0)
    return Plan.of_cut(CostModel(left), nothing, asked, of, "given scores")


def scores_on(left: ChannelGraph, scores: Mapping[str, Any]) -> dict[str, Floats]:
    """Scores of a whole graph's channels as those of the graph without blocks."""
    whole = left.whole or left
    by_channel = np.full(int(whole.component.max()) + 1, np.nan)
    for group in whole.groups:
        if group.name in scores:
            by_channel[group.components] = scores[group.name]
    return {g.name: by_channel[g.components] for g in left.groups}


# ---- choosing -----------------------------------------------------------------------------------------------------


def choose(
    graph: ChannelGraph, worth: Mapping[str, float], ratio: float, of: str, ignore: Ignore, nearest: bool
) -> tuple[tuple[str, ...], float]:
    """Names of the blocks that go, and the share of the cost that goes with them.

    The lowest ranks, as long as they fit; with `nearest` one more where that is nearer.

    Raises:
        BudgetError: with `nearest`, where all blocks together are less than the ratio, or no number of them is near.
        CriterionError: where a block has no finite score.
    """
    share = functools.cache(shares_of(graph, of))
    free = ranked_blocks(graph, worth, share, ignore)
    taken: frozenset[str] = frozenset()
    for name in free:
        if share(frozenset([name])) <= ratio + 1e-9 and share(taken | {name}) <= ratio + 1e-9:
            taken |= {name}
    if nearest:
        _reachable(graph, share(frozenset(free)), ratio, of, ignore)
        best = min((taken | {n} for n in free if n not in taken), key=share, default=taken)
        if abs(share(best) - ratio) < abs(share(taken) - ratio):
            taken = best
        elif share(taken) < FAR * ratio:
            raise too_coarse(graph, ratio, of, share(taken), share(best))
    return outermost(graph, taken), share(taken)


def ranked_blocks(
    graph: ChannelGraph, worth: Mapping[str, float], share: Callable[[frozenset[str]], float], ignore: Ignore
) -> list[str]:
    """Blocks that may go, the lowest saliency for what they cost first.

    Args:
        share: the share of the cost that goes with some blocks.

    Raises:
        CriterionError: a block has no finite score.
    """
    held = ignored_blocks(graph, ignore)
    alone = {b.name: share(frozenset([b.name])) for b in graph.blocks if b.name not in held}
    return sorted((n for n in alone if alone[n] > 0), key=lambda n: _worth(worth, n) / alone[n])


def shares_of(graph: ChannelGraph, of: str) -> Callable[[frozenset[str]], float]:
    """The share of a cost that goes with some blocks."""
    total = dense_cost(CostModel(graph), of)
    if of not in ("params", "macs"):
        return lambda names: 1 - dense_cost(CostModel(graph.without(sorted(names))), of) / total
    traced, before = graph.traced, cut(graph.traced, {})
    macs = {n: m for n in traced.graph.nodes if (m := macs_of(graph, n))} if of == "macs" else {}
    params = {n: math.prod(graph.shapes[n]) for n in graph.parameters}

    def share(names: frozenset[str]) -> float:
        after = cut_of(graph.traced, [b for b in graph.blocks if b.name in names])
        if of == "macs":
            return sum(m for n, m in macs.items() if n not in after.live) / total
        lost = gone(traced, after, taken_out(traced, before, after))
        return sum(params.get(n, 0) for n in lost) / total

    return share


def outermost(graph: ChannelGraph, names: frozenset[str]) -> tuple[str, ...]:
    """Blocks in the order of the graph, but for those that go with another one of them."""
    chosen = [b for b in graph.blocks if b.name in names]
    live = {b: cut_of(graph.traced, [o for o in chosen if o is not b]).live for b in chosen}
    return tuple(b.name for b in chosen if b.node in {n.name for n in live[b]})


def _worth(worth: Mapping[str, float], name: str) -> float:
    value = float(worth.get(name, np.nan))
    if not np.isfinite(value):
        raise CriterionError(
            f"block {name!r} has no finite score: a whole block is judged by its tensors, and this criterion scores "
            "channels alone; take another, such as magnitude or taylor, or granularity='channel'"
        )
    return value


def too_coarse(graph: ChannelGraph, ratio: float, of: str, fits: float, more: float) -> BudgetError:
    """What to say where the blocks that fit into a budget leave most of it, and one more would be far too many."""
    return BudgetError(
        f"{ratio:.1%} of {of} cannot be removed from this {graph.model_class} by whole blocks: those that fit make "
        f"{fits:.1%}, with one more {more:.1%}. Ask for one of these, or for granularity='both'",
        reachable=more,
    )


def _reachable(graph: ChannelGraph, most: float, ratio: float, of: str, ignore: Ignore) -> None:
    if most < ratio - 0.005:
        held = ", less those that ignore= names" if ignore else ""
        raise BudgetError(
            f"{ratio:.1%} of {of} cannot be removed from this {graph.model_class} by taking out blocks: all that can "
            f"go make {most:.1%} (blocks: {len(graph.blocks)}{held}). Ask for less, or for granularity='both'",
            reachable=most,
        )
