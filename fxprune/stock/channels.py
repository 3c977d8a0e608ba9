"""Which channels go once the widths are known: the lowest scores, the same share of every norm group where it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.graph.rules.op import NormGroups
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.removals import clusters, norm_groups_of
from fxprune.stock.oracle import Refusal

Gone = Mapping[int, Sequence[int]]


def chosen(
    graph: ChannelGraph, widths: Ints, scores: Mapping[str, Floats], stay: Mapping[int, Ints], exact: bool
) -> dict[int, list[int]] | Refusal:
    """The channels of every group that go.

    Args:
        widths: channels that every group keeps.
        scores: one a channel, by group name; the lowest go first.
        stay: groups whose channels are not free to choose: those that stay.
        exact: refuse where the groups of a norm cannot keep their own members.
    """
    out: dict[int, list[int]] = {}
    for members, norms in clusters(graph):
        if all(widths[g] == len(graph.groups[g]) for g in members):
            continue
        own = [n for n in norms if _is_of_one_group(graph, n)]
        for held in (norms, own, []):  # a norm over a concatenation may have to be regrouped
            made = _balanced(graph, members, held, widths, scores, stay)
            if made is not None:
                break
            if exact:
                names = ", ".join(norm.node for norm in norms[:3])
                return Refusal(f"the groups of {names} cannot keep their own members (exact_norms=True)")
        assert made is not None
        out.update(made)
    for g, kept in stay.items():
        if len(kept) != widths[g]:
            name = graph.groups[g].name
            return Refusal(f"{widths[g]} channels of {name} stay, but a table that is computed anew has {len(kept)}")
    return out


def _is_of_one_group(graph: ChannelGraph, norm: NormGroups) -> bool:
    found = (graph.channel_of.get(int(c)) for c in graph.component[norm.axis])
    return len({place[0] for place in found if place is not None}) == 1


def _balanced(
    graph: ChannelGraph,
    members: Sequence[int],
    norms: Sequence[NormGroups],
    widths: Ints,
    scores: Mapping[str, Floats],
    stay: Mapping[int, Ints],
) -> dict[int, list[int]] | None:
    """Every cell (channels of one group in the same groups of all norms) loses the same share; None where none can."""
    places = [norm_groups_of(graph, norm) for norm in norms]
    out = {}
    for g in members:
        group, score = graph.groups[g], scores[graph.groups[g].name]
        cells: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for k, c in enumerate(group.components.tolist()):
            cells.setdefault(tuple(p.get(c, ()) for p in places), []).append(k)
        if g in stay:
            out[g] = sorted(set(range(len(group))) - set(stay[g].tolist()))
            continue
        going: list[int] = []
        for cell in cells.values():
            count, rest = divmod(len(cell) * (len(group) - int(widths[g])), len(group))
            if rest:
                return None
            going += sorted(cell, key=lambda k: (score[k], k))[:count]
        out[g] = sorted(going)
    return out
