"""How many groups every group norm has once channels are gone."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools


@dataclass(frozen=True)
class NormChange:
    """A group norm's number of groups before and after; `exact` if every group kept its own members."""

    before: int
    after: int
    exact: bool


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
