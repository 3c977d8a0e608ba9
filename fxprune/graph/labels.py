"""Labels: one integer a position of a tensor's axis, and what must be equal among them.

    FROZEN = 0            a position that cannot be removed
    Axis   = ndarray      one label a position, or None: the whole axis is frozen, or has size one

Three facts are recorded while the coupling rules walk the graph, each with the node it came from:

    tie(a, b)             a[i] and b[i] live and die together
    freeze(a)             a[i] cannot be removed, with a reason
    split(parent, fs)     parent is the row-major product of the factor axes fs; one factor at most may live

`resolve` settles which factor of each split lives and returns the connected components: the channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Axis: TypeAlias = Ints | None
FROZEN = 0


@dataclass(frozen=True)
class Split:
    """`parent[p]` belongs to `factors[j][index of p along j]`; sizes multiply to `len(parent)`.

    `streamed`: the parent is a residual stream too (the model's Python reads head_dim off it), so that a head would
    take a block of the stream along.
    """

    parent: Ints
    sizes: tuple[int, ...]
    factors: tuple[Axis, ...]
    node: str
    streamed: bool = False

    def positions(self, j: int) -> Ints:
        """For every parent position its index along factor `j`."""
        inner = math.prod(self.sizes[j + 1 :])
        return (np.arange(len(self.parent)) // inner) % self.sizes[j]


@dataclass(frozen=True)
class Freeze:
    """Why some labels cannot be removed: the `cause` (a class of reasons), the node and a sentence."""

    cause: str
    node: str
    why: str


@dataclass
class LabelSpace:
    """All labels of one traced model, with the facts that the coupling rules stated about them."""

    size: int = 1
    edges: list[tuple[Ints, Ints, str]] = field(default_factory=list)
    freezes: list[tuple[Ints, Freeze]] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    hints: list[tuple[Ints, str]] = field(default_factory=list)

    def copy(self) -> LabelSpace:
        """The same facts, to state more without changing these."""
        return LabelSpace(self.size, list(self.edges), list(self.freezes), list(self.splits), list(self.hints))

    def fresh(self, n: int) -> Axis:
        """New labels for an axis of size `n` (None for size one: it cannot shrink)."""
        if n <= 1:
            return None
        self.size += n
        return np.arange(self.size - n, self.size, dtype=np.int64)

    def tie(self, a: Axis, b: Axis, node: str) -> Axis:
        """Positions of `a` and `b` live and die together; returns the labels of the joint axis."""
        if a is b:
            return a
        if a is None or b is None:
            live = b if a is None else a
            if live is not None:
                self.freeze(live, Freeze("meets a fixed axis", node, "is tied to an axis that cannot change"))
            return None
        if len(a) != len(b):
            raise AssertionError(f"{node}: axes of {len(a)} and {len(b)} positions cannot be tied")
        if not np.array_equal(a, b):
            self.edges.append((a, b, node))
        return a

    def freeze(self, a: Axis, reason: Freeze) -> None:
        """No position of `a` can be removed, for this reason."""
        if a is not None and len(a):
            self.freezes.append((a, reason))

    def split(self, parent: Axis, sizes: tuple[int, ...], node: str) -> tuple[Axis, ...]:
        """The factor axes of `parent` (row-major).  Factors of a frozen axis are frozen."""
        if parent is None:
            return (None,) * len(sizes)
        if sum(s > 1 for s in sizes) <= 1:
            return tuple(parent if s > 1 else None for s in sizes)
        factors = tuple(self.fresh(s) for s in sizes)
        self.splits.append(Split(parent, sizes, factors, node))
        return factors

    def merge(self, factors: tuple[Axis, ...], sizes: tuple[int, ...], node: str, streamed: bool = False) -> Axis:
        """The axis that is the row-major product of `factors`."""
        live = [j for j, f in enumerate(factors) if f is not None]
        if not live:
            return None
        if len(live) == 1:
            (j,) = live
            axis = factors[j]
            if len(factors) == 1:
                return axis
            assert axis is not None
            return np.tile(np.repeat(axis, math.prod(sizes[j + 1 :])), math.prod(sizes[:j]))
        parent = self.fresh(math.prod(sizes))
        assert parent is not None
        self.splits.append(Split(parent, sizes, factors, node, streamed))
        return parent

    def hint(self, a: Axis, kind: str) -> None:
        """Remember that `a` plays a part in attention ("heads" or "head_dim"), or is a "number" to Python."""
        if a is not None:
            self.hints.append((a, kind))


@dataclass(frozen=True)
class Resolved:
    """`component[label]`, with component 0 the frozen one, and the factor that lives in every split (-1: none)."""

    component: Ints
    live: tuple[int, ...]
    edges: tuple[tuple[Ints, Ints, str], ...]


def _components(size: int, edges: list[tuple[Ints, Ints, str]], frozen: list[Ints]) -> Ints:
    """Connected components, renumbered so that the component of FROZEN is 0."""
    a = np.concatenate([e[0] for e in edges] + frozen) if edges or frozen else np.zeros(0, np.int64)
    b = np.concatenate([e[1] for e in edges] + [np.zeros_like(f) for f in frozen]) if edges or frozen else a
    matrix = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(size, size))
    component = connected_components(matrix, directed=False)[1].astype(np.int64)
    at_zero = component[FROZEN]
    swap = np.arange(component.max() + 1)
    swap[0], swap[at_zero] = at_zero, 0
    out: Ints = swap[component]
    return out


def _factor_edge(s: Split, j: int) -> tuple[Ints, Ints, str]:
    factor = s.factors[j]
    assert factor is not None
    return (s.parent, factor[s.positions(j)], s.node)


class _Resolver:
    """State of `resolve`: what is decided, and which components are frozen so far."""

    def __init__(self, space: LabelSpace, owned: Ints, prefer: tuple[str, ...], fine: bool) -> None:
        self.space, self.owned, self.prefer, self.fine = space, owned, prefer, fine
        self.edges = list(space.edges)
        self.frozen = [a for a, _ in space.freezes]
        self.live = [_OPEN] * len(space.splits)
        self.chosen: list[Ints] = []
        self.survey()

    def survey(self) -> None:
        """Components as of now: which are frozen, which own tensors, which part they play in attention."""
        self.component = _components(self.space.size, self.edges, self.frozen)
        n = int(self.component.max()) + 1
        self.dead = np.zeros(n, bool)
        self.dead[0] = True
        self.part = np.full(n, len(self.prefer))
        for axis, kind in self.space.hints:
            if kind in self.prefer:
                np.minimum.at(self.part, self.component[axis], self.prefer.index(kind))
        self.number = np.zeros(n, bool)
        for axis, kind in self.space.hints:
            self.number[self.component[axis]] |= kind == "number"
        self.owns = np.zeros(n, bool)
        self.owns[self.component[self.owned]] = True
        self.committed = np.zeros(n, bool)
        for axis in self.chosen:
            self.committed[self.component[axis]] = True

    def able(self, s: Split) -> list[int]:
        """Factors of which some position may still go."""
        if self.dead[self.component[s.parent]].all():
            return []
        return [j for j, f in enumerate(s.factors) if f is not None and not self.dead[self.component[f]].all()]

    def rank(self, s: Split, j: int) -> tuple[int, bool, float, bool, bool, int, int]:
        """Lower is better.

        Part in attention, whether its size is a number too, frozen share, lives elsewhere, owns tensors, fineness.
        """
        factor = s.factors[j]
        assert factor is not None
        c = self.component[factor]
        part = int(self.part[c].min())
        if self.fine and s.streamed and part < len(self.prefer):
            part = len(self.prefer) + 1 if self.prefer[part] == "heads" else 0  # any other factor comes before heads
        elsewhere, owns = bool(self.committed[c].any()), bool(self.owns[c].any())
        number = bool(self.number[c].any())
        return (part, number, float(self.dead[c].mean()), not elsewhere, not owns, -s.sizes[j], j)

    def freeze(self, axis: Axis, reason: Freeze) -> None:
        if axis is not None:
            self.space.freeze(axis, reason)
            self.frozen.append(axis)
            self.dead[self.component[axis]] = True

    def decide(self, i: int, able: list[int]) -> None:
        """Let the best factor of split `i` live, and freeze the others (all, and the parent, where none is able)."""
        s = self.space.splits[i]
        best = min(able, key=lambda j: self.rank(s, j), default=_NONE)
        self.live[i] = best
        for j in able:
            if j != best:
                self.freeze(s.factors[j], Freeze("split axis", s.node, f"another factor of the split {s.sizes} lives"))
        if best == _NONE:
            for axis in (s.parent, *s.factors):
                self.freeze(axis, Freeze("split axis", s.node, f"no factor of the split {s.sizes} can shrink"))
        else:
            factor = s.factors[best]
            assert factor is not None
            self.edges.append(_factor_edge(s, best))
            self.chosen.append(factor)
            self.committed[self.component[factor]] = True

    def round(self, choose: Callable[[Split, list[int]], bool]) -> bool:
        """Decide the open splits that leave no choice, or that `choose` picks; returns whether any was decided."""
        changed = False
        for i, s in enumerate(self.space.splits):
            if self.live[i] == _OPEN:
                able = self.able(s)
                if len(able) < 2 or choose(s, able):
                    self.decide(i, able)
                    changed = True
        if changed:
            self.survey()
        return changed

    def attended(self, s: Split, able: list[int]) -> bool:
        return min(self.rank(s, j)[0] for j in able) < len(self.prefer)


_OPEN, _NONE = -2, -1


def resolve(
    space: LabelSpace, owned: Ints, prefer: tuple[str, ...] = ("heads", "head_dim"), fine: bool = True
) -> Resolved:
    """Decide every split, then return the components.

    A factor may live if not all of its labels are frozen.  Where several may, one is chosen, the others freeze: first
    by its part in an attention contraction (`prefer`, best first), then the one that owns parameters, then the finer
    one.  A choice may freeze factors elsewhere, so this runs in rounds, the surest decisions first.

    Args:
        owned: labels that a parameter or buffer carries.
        fine: where heads are blocks of a residual stream, prefer the other factor (see `Split.streamed`).
    """
    r = _Resolver(space, owned, prefer, fine)
    stages: list[Callable[[Split, list[int]], bool]] = [
        lambda s, able: False,
        lambda s, able: s.streamed and r.attended(s, able),
        r.attended,
        lambda s, able: True,
    ]
    for stage in stages:
        while r.round(stage):
            pass
    return Resolved(r.component, tuple(r.live), tuple(r.edges))
