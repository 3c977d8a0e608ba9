"""Which blocks go: the lowest saliency for what they cost, as many as the budget takes.

    rank(b) = Σ saliency of the tensors that go with b / cost that goes with b

Removing blocks overlaps (a nested one goes with the outer one; a modulation goes when its last reader does), so every
candidate set is counted anew.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.cost import MEASURES, CostModel, macs_of
from fxprune.depth.blocks import Block, cut, gone, taken_out
from fxprune.depth.reduced import cut_of
from fxprune.errors import BudgetError, CriterionError
from fxprune.plan import Plan
from fxprune.score import Scores

GRANULARITIES = ("channel", "block", "both")
SHARE = 0.5  # of a budget for blocks and channels together, the most that blocks take
Floats: TypeAlias = npt.NDArray[np.float64]
Channels: TypeAlias = Callable[[ChannelGraph, Mapping[str, Floats], float], Plan]


def plan_depth(
    graph: ChannelGraph,
    scores: Scores | Mapping[str, Any],
    ratio: float,
    of: str,
    ignore: Sequence[str],
    channels: Channels | None,
) -> Plan:
    """A plan that takes out blocks, and then channels of what is left.

    Args:
        scores: of `fxprune.score`, or a mapping that holds one number a block, too.
        channels: plans the channels of a graph for a ratio; None: only blocks go.

    Raises:
        BudgetError: where nothing near the ratio can be reached.
        CriterionError: where a block has no finite score.
    """
    values, worth = (scores.values, scores.blocks) if isinstance(scores, Scores) else (scores, scores)
    criterion = scores.criterion if isinstance(scores, Scores) else "given scores"
    names, share = choose(graph, worth, ratio if channels is None else ratio * SHARE, of, ignore, channels is None)
    left = graph.without(names)
    if channels is None:
        made = _only_blocks(left, of)
    else:
        made = channels(left, _scores_on(left, values), max(0.0, (ratio - share) / (1 - share)))
    cost = {k: (_cost(graph, k), after) for k, (_, after) in made.cost.items()}
    achieved = 1 - cost[of][1] / cost[of][0]
    return replace(made, blocks=names, ratio=ratio, achieved=achieved, cost=cost, criterion=criterion)


def _cost(graph: ChannelGraph, of: str) -> float:
    return CostModel(graph).of(of, np.zeros(len(graph.groups)))


def _only_blocks(left: ChannelGraph, of: str) -> Plan:
    model, nothing = CostModel(left), np.zeros(len(left.groups))
    sizes = {g.name: len(g) for g in left.groups}
    cost = {k: (0.0, model.of(k, nothing)) for k in MEASURES}
    return Plan(left.model_class, left.fingerprint, {}, sizes, of=of, cost=cost)


def _scores_on(left: ChannelGraph, scores: Mapping[str, Any]) -> dict[str, Floats]:
    """Scores of a whole graph's channels as those of the graph without blocks."""
    whole = left.whole or left
    by_channel = np.full(int(whole.component.max()) + 1, np.nan)
    for group in whole.groups:
        if group.name in scores:
            by_channel[group.components] = scores[group.name]
    return {g.name: by_channel[g.components] for g in left.groups}


# ---- choosing -----------------------------------------------------------------------------------------------------


def choose(
    graph: ChannelGraph, worth: Mapping[str, float], ratio: float, of: str, ignore: Sequence[str], nearest: bool
) -> tuple[tuple[str, ...], float]:
    """Names of the blocks that go, and the share of the cost that goes with them.

    The lowest ranks, as long as they fit; with `nearest` one more where that is nearer.

    Raises:
        BudgetError: with `nearest`, where all blocks together are less than the ratio.
        CriterionError: where a block has no finite score.
    """
    share = functools.cache(_shares(graph, of))
    alone = {b.name: share(frozenset([b.name])) for b in graph.blocks if not ignored(b, ignore)}
    free = sorted((n for n in alone if alone[n] > 0), key=lambda n: _worth(worth, n) / alone[n])
    taken: frozenset[str] = frozenset()
    for name in free:
        if alone[name] <= ratio + 1e-9 and share(taken | {name}) <= ratio + 1e-9:
            taken |= {name}
    if nearest:
        _reachable(graph, share(frozenset(free)), ratio, of, ignore)
        best = min((taken | {n} for n in free if n not in taken), key=share, default=taken)
        if abs(share(best) - ratio) < abs(share(taken) - ratio):
            taken = best
    return _outermost(graph, taken), share(taken)


def _shares(graph: ChannelGraph, of: str) -> Callable[[frozenset[str]], float]:
    """The share of a cost that goes with some blocks."""
    total = _cost(graph, of)
    if of not in ("params", "macs"):
        return lambda names: 1 - _cost(graph.without(sorted(names)), of) / total
    traced, before = graph.traced, cut(graph.traced, {})
    macs = {n: m for n in traced.graph.nodes if (m := macs_of(graph, n))} if of == "macs" else {}
    params = {n: math.prod(graph.shapes[n]) for n in graph.parameters}

    def share(names: frozenset[str]) -> float:
        after = cut_of(graph, [b for b in graph.blocks if b.name in names])
        if of == "macs":
            return sum(m for n, m in macs.items() if n not in after.live) / total
        lost = gone(traced, after, taken_out(traced, before, after))
        return sum(params.get(n, 0) for n in lost) / total

    return share


def _outermost(graph: ChannelGraph, names: frozenset[str]) -> tuple[str, ...]:
    """Blocks in the order of the graph, but for those that go with another one of them."""
    chosen = [b for b in graph.blocks if b.name in names]
    live = {b: cut_of(graph, [o for o in chosen if o is not b]).live for b in chosen}
    return tuple(b.name for b in chosen if b.node in {n.name for n in live[b]})


def _worth(worth: Mapping[str, float], name: str) -> float:
    value = float(worth.get(name, np.nan))
    if not np.isfinite(value):
        raise CriterionError(
            f"block {name!r} has no finite score; pass scores of fxprune.score(), by a criterion that scores tensors"
        )
    return value


def ignored(block: Block, patterns: Sequence[str]) -> bool:
    """Whether a pattern names the block, or a tensor or module that would go with it, or holds one."""
    names = {block.name, *block.modules, *block.tensors}
    names |= {n[:i] for n in names for i in range(len(n)) if n[i] == "."}
    return any(fnmatch.fnmatchcase(n, p) for n in names for p in patterns)


def _reachable(graph: ChannelGraph, most: float, ratio: float, of: str, ignore: Sequence[str]) -> None:
    if most < ratio - 0.005:
        held = f", ignore={list(ignore)}" if ignore else ""
        raise BudgetError(
            f"{ratio:.1%} of {of} cannot be removed from this {graph.model_class} by taking out blocks: all that can "
            f"go make {most:.1%} (blocks: {len(graph.blocks)}{held}). Ask for less, or for granularity='both'",
            reachable=most,
        )
