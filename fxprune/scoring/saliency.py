"""From what a criterion returned to one number a channel: reduction and normalisation, for all criteria alike.

With saliency s, and the elements E(c) that go when channel c goes (each counted once, also where two axes of one tensor
belong to c, as in a convolution from a residual stream to itself):

    score(c) = Σ_{e ∈ E(c)} s_e              reduce="sum"
    score(c) = Σ_{e ∈ E(c)} s_e / |E(c)|     reduce="mean"
    score(c) = max_{e ∈ E(c)} s_e            reduce="max"
    score(c) = √ Σ_{e ∈ E(c)} s_e²           reduce="l2"
    score(c) = Σ_{e ∈ F(c)} s_e              reduce="first", F(c) ⊂ E(c) in the first parameter that makes the channel

Tensors for which the criterion returned nothing count neither in the sum nor in |E(c)|.  Within a group of n channels:

    normalize="mean", "max"      over the mean, or the largest, of the absolute values (unchanged where that is zero)
    normalize="standardize"      less their mean, over their standard deviation (zero where that is zero)
    normalize="rank"             (rank − ½) / n, equal scores sharing the mean of their ranks
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.groups import Group, Slice
from fxprune.graph.sharding import full
from fxprune.scoring.elementwise import Elementwise
from fxprune.scoring.folding import Floats, Folded, Reduction, finite

Normalization: TypeAlias = Literal["none", "mean", "max", "standardize", "rank"]
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "mean", "max", "standardize", "rank")


def channel_scores(
    graph: ChannelGraph, who: str, returned: Any, reduce: Reduction, partial: bool = False
) -> dict[str, Floats]:
    """`summed` without what it has summed."""
    return summed(graph, who, returned, reduce, partial)[0]


def summed(
    graph: ChannelGraph, who: str, returned: Any, reduce: Reduction, partial: bool = False
) -> tuple[dict[str, Floats], Folded | None]:
    """Group name -> one score a channel, from what a criterion returned, and its saliencies as they were folded (None:
    it returned scores).

    Args:
        who: the criterion, as messages name it.
        partial: leave out groups for which the criterion returned nothing, unless that is all of them.

    Raises:
        CriterionError: an unknown name, a wrong shape, a value that is not finite, or a group without a score.
    """
    if not isinstance(returned, Mapping) or not (returned or partial):
        what = "nothing" if isinstance(returned, Mapping) else f"a {type(returned).__name__}"
        raise CriterionError(
            f"{who} returned {what}; return a dict of tensor name -> saliency of the tensor's shape, "
            "or of group name -> one score a channel"
        )
    groups = {g.name for g in graph.groups}
    unknown = [n for n in returned if n not in groups and n not in graph.shapes]
    if unknown:
        raise CriterionError(_unknown_name(who, unknown[0], [*groups, *graph.shapes]))
    of_groups = [n for n in returned if n in groups]
    if of_groups and len(of_groups) < len(returned):
        raise CriterionError(
            f"{who} returned scores of groups ({of_groups[0]}) beside saliencies of tensors; return one kind"
        )
    folded = None
    if of_groups:
        scored = {g.name: _of_group(g, who, returned) for g in graph.groups if g.name in returned}
    else:
        cut: dict[str, set[int]] = {}
        for s in (s for g in graph.groups for s in g.slices):
            cut.setdefault(s.tensor, set()).add(s.axis)
        held = {n: _saliency(graph, who, n, v) for n, v in returned.items() if n in cut}
        folded = Folded(who, held, reduce, {n: sorted(cut[n]) for n in held})
        parts = ((g, _reduced(g, folded, graph)) for g in graph.groups)
        scored = {g.name: finite(v, who, f"the score of group {g.name}") for g, v in parts if v is not None}
    missing = next((g for g in graph.groups if g.name not in scored), None)
    if missing is not None and not (partial and scored):
        raise CriterionError(_nothing_for(who, missing, bool(of_groups), partial, graph))
    return scored, folded


def block_scores(graph: ChannelGraph, returned: Mapping[str, Any], folded: Folded | None = None) -> dict[str, float]:
    """Block name -> what the criterion gave to all that goes with it: saliencies of tensors, or scores of channels.

    A block of which the criterion says nothing gets no score.

    Args:
        folded: what has been summed of the saliencies already.
    """
    owner = {g.name: {s.tensor for s in g.slices} for g in graph.groups}
    total: dict[str, float] = {}

    def total_of(name: str) -> float:
        if name not in total:
            known = None if folded is None else folded.total(name)
            total[name] = float(np.sum(_numbers(returned[name]))) if known is None else known
        return total[name]

    out = {}
    for block in graph.blocks:
        gone = set(block.tensors)
        scored = [n for n in returned if owner.get(n, {n}) <= gone]
        if scored:
            out[block.name] = sum(total_of(n) for n in scored)
    return out


def _numbers(given: Any) -> Floats:
    """The sum of a tensor's values, or the values of anything else, in float64."""
    if isinstance(given, Elementwise):
        given = given.fold(list(range(given.tensor.dim())))
    return np.asarray(
        full(given.detach()).sum(dtype=torch.float64).cpu() if isinstance(given, Tensor) else given, np.float64
    )


def _nothing_for(who: str, group: Group, of_groups: bool, partial: bool, graph: ChannelGraph) -> str:
    if partial:
        return f"{who} has nothing to say about any channel of this {graph.model_class}; use another criterion"
    if of_groups:
        return f"{who} returned no score for group {group.name}; score every group"
    tensors = ", ".join(dict.fromkeys(s.tensor for s in group.slices[:3]))
    return (
        f"{who} returned no saliency for any tensor of group {group.name} ({tensors}, ...); return one for at least "
        "one tensor of every group, or declare `partial = True`: such groups are then pruned last"
    )


def _unknown_name(who: str, name: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did it mean {close[0]!r}?" if close else ""
    return (
        f"{who} returned {name!r}, which is neither a tensor of the graph nor a group{hint} "
        "Use names of ctx.parameters, ctx.buffers or ctx.graph.groups"
    )


def _of_group(group: Group, who: str, returned: Mapping[str, Any]) -> Floats:
    """Scores that a criterion gave for a group itself."""
    given = returned[group.name]
    values = np.asarray(given.detach().double().cpu() if isinstance(given, Tensor) else given, np.float64)
    if values.shape != (len(group),):
        raise CriterionError(
            f"{who} returned shape {values.shape} for group {group.name}; return one number for "
            f"each of its {len(group)} channels, shape ({len(group)},)"
        )
    return finite(values, who, f"the scores of group {group.name}")


def _saliency(graph: ChannelGraph, who: str, name: str, given: Any) -> Elementwise:
    """A criterion's saliency of one tensor, its shape checked, where it is."""
    value = given if isinstance(given, Elementwise) else Elementwise(torch.as_tensor(given), lambda block: block)
    if tuple(value.shape) != graph.shapes[name]:
        raise CriterionError(
            f"{who} returned shape {tuple(value.shape)} for {name}; return a saliency of the "
            f"tensor's own shape {graph.shapes[name]}"
        )
    return value


def _reduced(group: Group, folded: Folded, graph: ChannelGraph) -> Floats | None:
    """One number a channel; None where no tensor of the group has a saliency."""
    known = [s for s in group.slices if s.tensor in folded.saliency]
    if not known:
        return None
    if folded.reduce == "max":
        largest = [folded.over_all_but(s.tensor, (s.axis,))[s.positions].max(1) for s in known]
        return np.max(largest, axis=0)  # type: ignore[no-any-return]
    if folded.reduce == "first":
        known = [next((s for s in known if s.axis == 0 and s.tensor in graph.parameters), known[0])]
    total, count = np.zeros(len(group)), 0
    for _, cuts in itertools.groupby(sorted(known, key=lambda s: s.tensor), key=lambda s: s.tensor):
        part, elements = _union(tuple(sorted(cuts, key=lambda s: s.axis)), folded)
        total, count = total + part, count + elements
    if folded.reduce == "l2":
        total = np.sqrt(total.clip(0))
    return total / count if folded.reduce == "mean" else total


def _union(cuts: tuple[Slice, ...], folded: Folded) -> tuple[Floats, int]:
    """Sum and number of one tensor's elements that lie in any of a channel's cuts, by inclusion and exclusion."""
    shape = folded.saliency[cuts[0].tensor].shape
    total, count = np.zeros(len(cuts[0].positions)), 0
    for size in range(1, len(cuts) + 1):
        for chosen in itertools.combinations(cuts, size):
            axes = {s.axis: s.positions.shape[1] for s in chosen}
            values = folded.over_all_but(chosen[0].tensor, tuple(axes))[_index(chosen)]
            sign = (-1) ** (size + 1)
            total += sign * values.reshape(len(total), -1).sum(1)
            count += sign * math.prod(axes.get(d, n) for d, n in enumerate(shape))
    return total, count


def _index(chosen: tuple[Slice, ...]) -> tuple[npt.NDArray[np.int64], ...]:
    """Positions of k cuts, broadcast against each other: shape (channels, m_1, ..., m_k)."""
    k = len(chosen)
    return tuple(
        s.positions.reshape(len(s.positions), *(1 if j != i else -1 for j in range(k))) for i, s in enumerate(chosen)
    )


def normalized(values: Floats, how: Normalization) -> Floats:
    """A group's scores, made comparable with those of other groups."""
    if how == "none" or not len(values):
        return values
    if how == "rank":
        _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
        return ((np.cumsum(count) - count / 2)[inverse]) / len(values)
    if how == "standardize":
        values, size = values - values.mean(), values.std()
    else:
        size = np.abs(values).mean() if how == "mean" else np.abs(values).max()
    return values / size if size > 0 else values
