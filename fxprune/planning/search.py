"""Meet a budget: the longest prefix of all removals that does not overshoot, then smaller removals into what is left.

Every move is tried in one fixed order, so a larger budget never removes less: up to the first move that only the larger
one has room for, both take the same ones, and that move alone outweighs all that the smaller one may still take.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.planning.costs.counted import Costs
from fxprune.planning.removals import Removals

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TRIES = 2000  # removals tried after the prefix
ROUNDING = 1e-9


@dataclass(frozen=True)
class Queue:
    """All removals of all parts in the order in which they are tried; `part[k]` is the part that move k belongs to."""

    part: Ints
    removals: Removals
    groups: int

    def loss(self, first: int, last: int) -> Floats:
        """Channels that each group loses by removals first, ..., last - 1."""
        taken = self.removals.group[self.removals.ends[first] : self.removals.ends[last]]
        return np.bincount(taken, minlength=self.groups).astype(float)


def queue(parts: Sequence[Removals], keys: Sequence[Floats], groups: int) -> Queue:
    """All removals by their keys, one key a move; a part's keys do not fall, so that its removals stay in order."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Queue(none, Removals(np.zeros(0), none, none, np.zeros(1, np.int64)), groups)
    order = np.argsort(np.concatenate(keys), kind="stable")
    part = np.repeat(np.arange(len(parts)), [len(seq) for seq in parts])[order]
    sizes = np.concatenate([np.diff(seq.ends) for seq in parts])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[order]
    ends = np.concatenate([[0], np.cumsum(sizes[order])])
    slots = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes[order])
    score = np.concatenate([seq.score for seq in parts])[order]
    group = np.concatenate([seq.group for seq in parts])[slots]
    return Queue(part, Removals(score, group, np.concatenate([seq.channel for seq in parts])[slots], ends), groups)


@dataclass(frozen=True)
class Cut:
    """Channels that go (group and index), how many each group loses, and the share of the cost that goes with them."""

    group: Ints
    channel: Ints
    removed: Floats
    share: float


@dataclass(frozen=True)
class Met:
    """The cut nearest to a budget from below, the next one above (None: nothing is left), the shares that go at least
    and at most."""

    below: Cut
    above: Cut | None
    least: float
    reachable: float


def meet(cost: Costs, of: str, all_removals: Queue, stated: Sequence[Removals], asked: float) -> Met:
    """Fill a budget with removals, on top of those that are stated and go anyway.

    Args:
        asked: share of `of` to remove; what is stated may take more.
    """
    total = cost.of(of, np.zeros(all_removals.groups))
    first = _chosen(stated, all_removals.groups)

    def share(removed: Floats) -> float:
        return 1 - cost.of(of, removed) / total

    def cut(taken: Sequence[int]) -> Cut:
        ends = all_removals.removals.ends
        slots = np.concatenate([np.arange(0), *(np.arange(ends[k], ends[k + 1]) for k in taken)])
        group = np.concatenate([first.group, all_removals.removals.group[slots]])
        removed = np.bincount(group, minlength=all_removals.groups).astype(float)
        return Cut(
            group, np.concatenate([first.channel, all_removals.removals.channel[slots]]), removed, share(removed)
        )

    start = np.bincount(first.group, minlength=all_removals.groups).astype(float)
    taken, over = _filled(all_removals, start, lambda removed: share(removed) <= asked + ROUNDING, share)
    most = start + all_removals.loss(0, len(all_removals.part))
    return Met(cut(taken), None if over is None else cut(over), share(start), share(most))


def _filled(
    removals: Queue, start: Floats, fits: Callable[[Floats], bool], share: Callable[[Floats], float]
) -> tuple[list[int], list[int] | None]:
    """Removals that fit together, and the cheapest set with one more that did not fit when it was tried.

    A part whose next move does not fit is passed over from then on.
    """
    low, high, parts = 0, len(removals.part), len(np.unique(removals.part))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(start + removals.loss(0, middle)) else (low, middle - 1)
    taken, removed = list(range(low)), start + removals.loss(0, low)
    stuck: set[int] = set()
    over: tuple[float, list[int]] | None = None
    open_moves = (k for k in range(low, len(removals.part)) if int(removals.part[k]) not in stuck)
    for k in itertools.islice(open_moves, TRIES):
        more = removed + removals.loss(k, k + 1)
        if fits(more):
            removed = more
            taken.append(k)
            continue
        stuck.add(int(removals.part[k]))
        if over is None or share(more) < over[0]:
            over = share(more), [*taken, k]
        if len(stuck) == parts:
            break
    return taken, None if over is None else over[1]


def _chosen(stated: Sequence[Removals], groups: int) -> Removals:
    """All removals of some parts, as one."""
    return queue(stated, [np.arange(len(seq), dtype=float) for seq in stated], groups).removals
