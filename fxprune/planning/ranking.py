"""In which order removals are tried: by their scores, or by the share that their part has lost.

global        all removals by score
knapsack      all removals by what is lost per unit of cost (scores come weighed, see `per_cost`)
local         every part by itself: the same share of each
isomorphic    parts of the same structure together, by score; every such class loses the same share
a table       by the harm that the share has done, as `fxprune.sensitivity` measured it: the same harm to each
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.rules.op import op_name
from fxprune.planning.costs.counted import Costs, prices
from fxprune.planning.removals import Removals
from fxprune.scoring.score import Scores

Floats = npt.NDArray[np.float64]
SCOPES = ("knapsack", "global", "local", "isomorphic")


def keys(graph: ChannelGraph, parts: Sequence[Removals], scope: str) -> list[Floats]:
    """One number a move of every part, not falling along a part; the lowest are tried first."""
    scores = [np.maximum.accumulate(seq.score) for seq in parts]  # a later move waits for an earlier, dearer one
    if scope in ("knapsack", "global"):
        return scores
    kinds: list[Hashable] = list(range(len(parts)))
    if scope == "isomorphic":
        like = structures(graph)
        kinds = [tuple(sorted(like[g] for g in touched(seq))) for seq in parts]
    out: list[Floats] = [np.zeros(0)] * len(parts)
    for kind in dict.fromkeys(kinds):
        members = [i for i, k in enumerate(kinds) if k == kind]
        order = np.argsort(np.concatenate([scores[i] for i in members]), kind="stable")
        lost = np.concatenate([np.diff(parts[i].ends) for i in members])
        share = np.zeros(len(order))
        share[order] = np.cumsum(lost[order]) / sum(size(graph, parts[i]) for i in members)
        for i, piece in zip(members, np.split(share, np.cumsum([len(parts[i]) for i in members])[:-1]), strict=True):
            out[i] = piece
    return out


def per_cost(cost: Costs, of: str, values: Mapping[str, Floats], unscored: Sequence[str] = ()) -> dict[str, Floats]:
    """What a channel's loss weighs against its cost, by group; groups without a score stay the last.

    A group of channels with scores s, of which K are kept, is worth S log(Σ_K s / S), S = Σ s.  Taking first what loses
    the least worth for the cost that goes is the greedy solution of the knapsack problem with these worths.  The
    logarithm makes channels dearer as their group empties: scores are taken at the full network, where each channel
    has the others to stand in for it.

    Source: Dantzig, Discrete-Variable Extremum Problems, Operations Research 1957; for channels and their latency Shen
    et al., Structural Pruning via Latency-Saliency Knapsack, NeurIPS 2022; for the logarithm Kelly, Charging and Rate
    Control for Elastic Traffic (proportional fairness), European Transactions on Telecommunications 1997.
    """
    names = [g.name for g in cost.graph.groups]
    out = {n: marginal_worth(values[n]) / price for n, price in zip(names, prices(cost, of), strict=True)}
    top = max((float(v.max()) for n, v in out.items() if len(v) and n not in unscored), default=0.0)
    return {n: np.full(len(v), top) if n in unscored else v for n, v in out.items()}


def marginal_worth(scores: Floats) -> Floats:
    """Scores of a group (n,), each times the group's sum over what is left of it when its turn comes, lowest first.

    Scores of which some are negative have no worth to share, and stay.
    """
    total = float(scores.sum())
    if not total > 0 or scores.min() < 0:
        return scores
    order = np.argsort(scores, kind="stable")
    left = np.cumsum(scores[order][::-1])[::-1]
    out = np.empty_like(scores)
    out[order] = scores[order] / np.where(left > 0, left, 1.0) * total
    return out


def scope_of(scope: str | None, scores: Scores | Mapping[str, Floats], of: str) -> str:
    """The scope that was asked for, or the one that suits the scores."""
    adds_up = isinstance(scores, Scores) and scores.additive and of != "memory"  # only at its peak does memory cost
    return scope or ("knapsack" if adds_up else "global")


class Curves(Protocol):
    """What a table must tell: the harm done when some groups lose shares of their channels, None if it knows none."""

    def harm(self, groups: Sequence[str], shares: Floats) -> Floats | None: ...


def by_harm(graph: ChannelGraph, parts: Sequence[Removals], table: Curves) -> tuple[list[Removals], list[Floats]]:
    """The parts that a table knows, and for each of their removals the harm that is done after it."""
    found = [(seq, table.harm([graph.groups[g].name for g in touched(seq)], lost(graph, seq))) for seq in parts]
    known = [(seq, np.maximum.accumulate(harm)) for seq, harm in found if harm is not None]
    return [seq for seq, _ in known], [harm for _, harm in known]


def touched(seq: Removals) -> list[int]:
    """Indices of the groups that a part's removals take channels from."""
    return [int(g) for g in np.unique(seq.group)]


def size(graph: ChannelGraph, seq: Removals) -> int:
    """Channels in the groups of a part."""
    return sum(len(graph.groups[g]) for g in touched(seq))


def lost(graph: ChannelGraph, seq: Removals) -> Floats:
    """The share of a part's channels that is gone after each of its removals."""
    share: Floats = seq.ends[1:] / size(graph, seq)
    return share


def structures(graph: ChannelGraph) -> list[int]:
    """A number for every group, the same where the structure is: which ops read its tensors, by which axes.

    Sizes do not count, except those of a kernel.

    Source: Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024.
    """
    uses = _uses(graph)
    shapes = []
    for group in graph.groups:
        parts = Counter((s.axis, *uses.get(s.tensor, ())) for s in group.slices)
        shapes.append((group.kind, frozenset(parts.items())))
    numbers = {shape: i for i, shape in enumerate(dict.fromkeys(shapes))}
    return [numbers[shape] for shape in shapes]


def _uses(graph: ChannelGraph) -> dict[str, tuple[Hashable, ...]]:
    """Tensor -> its rank and the ops that take it: the op, the number of the argument, and the size of a kernel."""
    out: dict[str, list[tuple[str, int, tuple[int, ...]]]] = {}
    for node in graph.traced.graph.nodes:
        if (name := graph.traced.tensors.get(node.name)) is None or node.op != "placeholder":
            continue
        for user in node.users:
            op = op_name(user.target)
            kernel = graph.shapes[name][2:] if op.startswith("aten::conv") else ()
            out.setdefault(name, []).extend((op, i, kernel) for i, a in enumerate(user.args) if a is node)
    return {name: (len(graph.shapes[name]), *sorted(ops)) for name, ops in out.items()}
