"""How a group may shrink: nested sequences of removals, each of which leaves every constraint satisfied.

unconstrained        one channel a removal (or `round_to` of them)
one norm partition   one channel of every norm group, or a whole norm group, whichever costs less score; or, on a
                     `path`, so many channels of every norm group first, and then whole groups
several partitions   (a group norm over a concatenation) one share of every cell of the common refinement, in lockstep
regrouped            as many channels as keep the norm's channel count divisible; group membership is given up

With `round_to`, removals are joined until the widths are multiples again, where they ever are.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import networkx as nx
import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.rules.op import NormGroups

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PATHS = 32  # tried at most


@dataclass(frozen=True)
class Removals:
    """A sequence of removals, taken in order: number k takes channel[i] of group[i] for ends[k] <= i < ends[k + 1].

    `score[k]` is the mean score of what removal k takes.
    """

    score: Floats
    group: Ints
    channel: Ints
    ends: Ints

    def __len__(self) -> int:
        return len(self.score)

    def first(self, n: int) -> Removals:
        """The first `n` removals."""
        last = int(self.ends[n])
        return Removals(self.score[:n], self.group[:last], self.channel[:last], self.ends[: n + 1])


def _stacked(removals: Sequence[tuple[float, Sequence[tuple[int, Sequence[int]]]]]) -> Removals:
    """`Removals` from (score, [(group, channels), ...]) items."""
    pairs = [(g, c) for _, parts in removals for g, channels in parts for c in channels]
    ends = np.cumsum([0] + [sum(len(c) for _, c in parts) for _, parts in removals])
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return Removals(np.array([score for score, _ in removals]), both[:, 0], both[:, 1], ends)


@dataclass(frozen=True)
class Bounds:
    """How far a group may shrink.

    Attributes:
        max_ratio: the share of its channels that it may lose.
        round_to: a multiple that its width keeps.
        min_width: the channels that it keeps at least, where it has them.
        freed: groups to which `max_ratio` does not apply, by index.
        least: the channels that some groups keep at least, by index, where the model itself needs more.
    """

    max_ratio: float = 0.9
    round_to: int = 1
    min_width: int = 1
    freed: Container[int] = ()
    least: Mapping[int, int] = field(default_factory=dict)

    def most(self, g: int, n: int) -> int:
        """Most channels that may go out of the `n` of group `g`."""
        share = n if g in self.freed else int(n * self.max_ratio + 1e-9)
        return min(n - min(n, max(self.min_width, self.least.get(g, 1))), share)


def _blocks(graph: ChannelGraph, norm: NormGroups) -> tuple[Ints, Ints]:
    """Component and norm-group index of every position of a norm's channel axis."""
    component = graph.component[norm.axis]
    return component, np.arange(len(component)) // (len(component) // norm.groups)


def clusters(graph: ChannelGraph) -> Iterator[tuple[list[int], list[NormGroups]]]:
    """Groups that are tied through group norms, with these norms."""
    links = nx.Graph()
    links.add_nodes_from(range(len(graph.groups)))
    norms: dict[int, list[NormGroups]] = {}
    for norm in graph.facts.norm_groups:
        touched = sorted(
            {graph.channel_of[int(c)][0] for c in graph.component[norm.axis] if int(c) in graph.channel_of}
        )
        nx.add_path(links, touched)
        if touched:
            norms.setdefault(touched[0], []).append(norm)
    for members in nx.connected_components(links):
        yield sorted(members), [n for g in sorted(members) for n in norms.get(g, [])]


def _aligned(removals: Removals, sizes: Ints, widths: Ints, anyway: bool) -> Removals:
    """The same channels in fewer removals that leave the groups multiples of their widths.

    Args:
        sizes: channels of every group, by index.
        widths: the multiple that each of them keeps.
        anyway: whether they go as they were where none can; else nothing goes.
    """
    groups = np.unique(removals.group)
    if not len(removals) or (widths[groups] == 1).all():
        return removals
    gone = np.stack([np.concatenate([[0], np.cumsum(removals.group == g)])[removals.ends] for g in groups], axis=1)
    fits = ((sizes[groups] - gone) % widths[groups] == 0).all(axis=1)
    fits[0] = True
    if fits.sum() < 2:
        return removals if anyway else removals.first(0)
    ends = removals.ends[fits]
    each = np.diff(removals.ends) * removals.score
    total = np.concatenate([[0.0], np.cumsum(each)])[fits]
    last = int(ends[-1])
    return Removals(np.diff(total) / np.diff(ends), removals.group[:last], removals.channel[:last], ends)


def sequences(
    graph: ChannelGraph,
    scores: Mapping[str, Floats],
    bounds: Bounds,
    allowed: Sequence[bool],
    regroup: Container[str] = (),
    path: Mapping[int, float] | None = None,
) -> list[Removals]:
    """For every independent part of the model its nested removals, in the order in which they must be taken.

    Args:
        scores: one score a channel, by group name.
        allowed: whether a group may be pruned at all, by index.
        regroup: group norms (by node) whose groups may lose their own members, and with them those they share groups
            of channels with.
        path: of some groups, by index, the share of a norm group's channels (but one) that go before whole norm groups
            do; see `paths`.
    """
    bounds = replace(bounds, least=_least(graph))
    out: list[Removals] = []
    for members, norms in clusters(graph):
        live = [g for g in members if allowed[g]]
        values = {g: scores[graph.groups[g].name] for g in members}
        if not norms:
            out += [_free(g, values[g], _quantum(graph, g, bounds), bounds) for g in live]
        elif not any(norm.node in regroup for norm in norms):
            whole, along = len(live) == len(members), (path or {}).get(members[0])
            out.append(_exact(graph, members, norms, values, bounds, along) if whole else _stacked([]))
        else:
            out += [_regrouped(graph, g, norms, values[g], bounds) for g in live]
    sizes = np.array([len(g) for g in graph.groups])
    widths = np.array([_quantum(graph, g, bounds) for g in range(len(sizes))], np.int64)
    return [_aligned(seq, sizes, widths, path is None) for seq in out if len(seq)]


def _times(graph: ChannelGraph, g: int, axis: Ints) -> int:
    """Positions that each channel of a group has on an axis."""
    group = graph.groups[g]
    return int(np.isin(graph.component[axis], group.components).sum()) // len(group)


def _least(graph: ChannelGraph) -> dict[int, int]:
    """The channels that groups keep so that enough positions of some axes do."""
    out: dict[int, int] = {}
    for axis, positions in graph.facts.least:
        for g in range(len(graph.groups)):
            if times := _times(graph, g, axis):
                out[g] = max(out.get(g, 1), math.ceil(positions / times))
    return out


def _quantum(graph: ChannelGraph, g: int, bounds: Bounds) -> int:
    """The multiple of channels that a group's width keeps."""
    q = bounds.round_to
    for axis, by in graph.facts.multiples:
        if times := _times(graph, g, axis):
            q = math.lcm(q, by // math.gcd(by, times))
    return q


def _free(g: int, score: Floats, quantum: int, bounds: Bounds) -> Removals:
    """`quantum` channels a removal, the lowest first; the first removal makes the width a multiple."""
    order = np.argsort(score, kind="stable")[: bounds.most(g, len(score))]
    first = len(score) % quantum
    ends = np.arange(first, len(order) + 1, quantum)
    return _in_order(g, score, order, np.concatenate([[0], ends]) if first else ends)


def _in_order(g: int, score: Floats, order: Ints, ends: Ints) -> Removals:
    """Moves of one group: `order` cut at `ends`."""
    if len(ends) < 2:
        return _stacked([])
    total = np.concatenate([[0.0], np.cumsum(score[order])])[ends]
    order = order[: ends[-1]]
    return Removals(np.diff(total) / np.diff(ends), np.full(len(order), g), order, ends)


def _regrouped(graph: ChannelGraph, g: int, norms: list[NormGroups], score: Floats, bounds: Bounds) -> Removals:
    """Moves of q channels, such that every norm's channel count stays a multiple of about a quarter of its groups."""
    q = _quantum(graph, g, bounds)
    for norm in norms:
        if times := _times(graph, g, norm.axis):
            base = max(d for d in range(1, max(1, norm.groups // 4) + 1) if norm.groups % d == 0)
            q = math.lcm(q, base // math.gcd(base, times))
    order = np.argsort(score, kind="stable")[: bounds.most(g, len(score))]
    return _in_order(g, score, order, np.arange(0, len(order) + 1, q))


def _exact(
    graph: ChannelGraph,
    members: list[int],
    norms: list[NormGroups],
    values: dict[int, Floats],
    bounds: Bounds,
    path: float | None,
) -> Removals:
    cells: dict[tuple[int, tuple[tuple[int, ...], ...]], list[int]] = {}
    places = [norm_groups_of(graph, norm) for norm in norms]
    if any(0 in p for p in places):  # a frozen position sits in a norm group
        return _stacked([])
    for g in members:
        for k, c in enumerate(graph.groups[g].components.tolist()):
            cells.setdefault((g, tuple(p.get(c, ()) for p in places)), []).append(k)
    if len(members) == 1 and _one_partition(cells):
        return _one_norm(members[0], list(cells.values()), values[members[0]], bounds, path)
    return _lockstep(cells, values, bounds)


def norm_groups_of(graph: ChannelGraph, norm: NormGroups) -> dict[int, tuple[int, ...]]:
    """Component -> the norm groups of its positions."""
    out: dict[int, list[int]] = {}
    for c, b in zip(*_blocks(graph, norm), strict=True):
        out.setdefault(int(c), []).append(int(b))
    return {c: tuple(b) for c, b in out.items()}


def _one_partition(cells: Mapping[tuple[int, tuple[tuple[int, ...], ...]], list[int]]) -> bool:
    """Whether all norms cut the channels the same way, into equal cells, each channel in one norm group of each."""
    keys = [key[1] for key in cells]
    single = all(len(set(blocks)) == 1 for key in keys for blocks in key)
    alike = all(len({key[i] for key in keys}) == len(keys) for i in range(len(keys[0])))
    return single and alike and len({len(c) for c in cells.values()}) == 1


def paths(graph: ChannelGraph) -> tuple[float, ...]:
    """Shares of a norm group that may go from every group before whole groups do.

    What stays of a norm exactly is j channels of each of a groups.  The removals of one sequence are nested, so it
    passes few of these sets; all paths together pass the best set for every a and j.
    """
    members = max((len(norm.axis) // norm.groups for norm in graph.facts.norm_groups), default=1)
    most = min(members, PATHS)
    return tuple(i / (most - 1) for i in range(most)) if most > 1 else ()


def _one_norm(g: int, blocks: list[list[int]], score: Floats, bounds: Bounds, path: float | None) -> Removals:
    """The worst member of every block, or the worst block whole: what has the lower mean score, or as `path` says."""
    left = [sorted(b, key=lambda c: (score[c], c)) for b in blocks]
    narrow = 0 if path is None else len(left[0]) - 1 - round(path * (len(left[0]) - 1))
    budget = bounds.most(g, len(score))
    removals: list[tuple[float, list[tuple[int, list[int]]]]] = []
    while True:
        options = []
        if len(left[0]) > 1:
            options.append([b[0] for b in left])
        if len(left) > 1:
            options.append(min(left, key=lambda b: (float(score[b].mean()), b)))
        options = [o for o in options if len(o) <= budget]
        if not options:
            return _stacked(removals)
        if path is not None and len(options) == 2:
            gone = options[0] if len(left[0]) > 1 + narrow else options[1]
        else:
            gone = min(options, key=lambda o: (float(score[o].mean()), len(o)))
        removals.append((float(score[gone].mean()), [(g, gone)]))
        budget -= len(gone)
        dead = set(gone)
        left = [[c for c in b if c not in dead] for b in left]
        left = [b for b in left if b]


def _lockstep(
    cells: Mapping[tuple[int, tuple[tuple[int, ...], ...]], list[int]], values: dict[int, Floats], bounds: Bounds
) -> Removals:
    """Every cell loses the same share a removal."""
    share = math.gcd(*(len(c) for c in cells.values()))
    ordered = {key: sorted(c, key=lambda k: (values[key[0]][k], k)) for key, c in cells.items()}
    sizes = {g: len(values[g]) for g, _ in cells}
    removals = []
    for step in range(min(bounds.most(g, n) // (n // share) for g, n in sizes.items())):
        gone: dict[int, list[int]] = {}
        for (g, _), c in ordered.items():
            n = len(c) // share
            gone.setdefault(g, []).extend(c[step * n : (step + 1) * n])
        total = sum(float(values[g][c].sum()) for g, c in gone.items()) / sum(map(len, gone.values()))
        removals.append((total, list(gone.items())))
    return _stacked(removals)
