"""Channels that occupy the same axes form a group.

Group
  channels            one component a channel
  slices: Slice ...   (tensor, axis, positions of each channel)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from fxprune.graph.labels import Bools, Ints
from fxprune.graph.rules.op import Labels


@dataclass(frozen=True)
class Slice:
    """The positions along `axis` of `tensor` of each channel of a group: an array (channels, positions a channel)."""

    tensor: str
    axis: int
    positions: Ints

    def __repr__(self) -> str:
        n, m = self.positions.shape
        return f"{self.tensor}[{self.axis}] ({n} x {m})"


@dataclass(frozen=True)
class Group:
    """Channels that occupy the same axes: `components[c]` is channel c's component."""

    name: str
    components: Ints
    slices: tuple[Slice, ...]
    kind: str = "channels"

    def __len__(self) -> int:
        return len(self.components)

    def __repr__(self) -> str:
        more = f", and {len(self.slices) - 3} more" if len(self.slices) > 3 else ""
        return f"{self.name}: {len(self)} {self.kind} in {', '.join(map(repr, self.slices[:3]))}{more}"


@dataclass(frozen=True)
class Held:
    """A tensor axis that cannot be pruned, or only in part: how many positions, and why."""

    tensor: str
    axis: int
    positions: int
    cause: str
    why: str
    op: str
    source: str


@dataclass(frozen=True)
class Labelled:
    """What groups are made of: the component of every label, and the labels of every tensor and of every value."""

    component: Ints
    tensors: Mapping[str, Labels]
    env: Mapping[fx.Node, Any]
    parameters: frozenset[str]
    reads: Mapping[str, Sequence[tuple[fx.Node, int]]]
    hints: Sequence[tuple[Ints, str]]
    reduced: Sequence[Ints] = ()


def _occurrences(given: Labelled) -> Iterator[tuple[str, int, Ints]]:
    """(tensor, axis, labels) of all tensors, then of all activations under the name "@node"."""
    for name, labels in given.tensors.items():
        for d, axis in enumerate(labels):
            if axis is not None:
                yield name, d, axis
    for node, value in given.env.items():
        if node.op == "placeholder":
            continue
        for k, labels in enumerate(value if isinstance(value, list) else [value]):
            for d, axis in enumerate(labels or ()):
                if axis is not None:
                    yield f"@{node.name}.{k}", d, axis


def groups_of(given: Labelled) -> tuple[Group, ...]:
    """Components with a parameter position, grouped by the axes (of tensors and activations) that they occupy.

    Channels of one group play the same part everywhere, so they may be permuted among themselves.
    """
    component = given.component
    rows = list(_occurrences(given))
    if not rows:
        return ()
    rng = np.random.default_rng(0)
    n = int(component.max()) + 1
    keys = rng.integers(1, 2**64, size=len(rows), dtype=np.uint64)  # a set of rows is known by its keys' sum
    signature = np.zeros(n, np.uint64)
    owned, made, buffered = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool)
    first = np.full(n, np.iinfo(np.int64).max)
    base = 0
    for (name, d, axis), key in zip(rows, keys, strict=True):
        c = component[axis]
        np.add.at(signature, c, key)
        if name in given.parameters:
            owned[c] = True
            made[c] |= d == 0
        elif name in given.tensors:
            buffered[c] = True
        np.minimum.at(first, c, base + np.arange(len(c)))
        base += len(c)
    owned &= made | ~buffered  # what only a buffer makes is an input of the model in all but name
    owned &= _read_components(given, n)  # what is cut off unread (a table's tail) may be read for other inputs
    owned[0] = False
    members = np.flatnonzero(owned)
    members = members[np.argsort(first[members], kind="stable")]
    _, inverse = np.unique(signature[members], return_inverse=True)
    order: dict[int, list[int]] = {}
    for c, g in zip(members.tolist(), inverse.tolist(), strict=True):
        order.setdefault(g, []).append(c)
    where = np.full(n, -1)
    index_in = np.zeros(n, np.int64)
    for g, comps in enumerate(order.values()):
        where[comps] = g
        index_in[comps] = np.arange(len(comps))
    slices: list[list[Slice]] = [[] for _ in order]
    sizes = [len(comps) for comps in order.values()]
    for name, d, axis in rows:
        if name.startswith("@"):
            continue
        c = component[axis]
        for g in _distinct(where[c]):
            if g >= 0:
                at = np.flatnonzero(where[c] == g)
                slices[g].append(Slice(name, d, _in_order(at, index_in[c[at]]).reshape(sizes[g], -1)))
    heads = _of_kind(given, "heads")
    names: dict[str, int] = {}
    groups = []
    for comps, cut in zip(order.values(), slices, strict=True):
        # the first axis that only this group writes names it; parameters before buffers
        lead = next((s for s in cut if s.axis == 0 and s.tensor in given.parameters), cut[0])
        name = f"{lead.tensor}:{lead.axis}"
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        kind = "heads" if heads[comps].all() else "channels"
        groups.append(Group(name, np.array(comps, np.int64), tuple(cut), kind))
    return tuple(groups)


def _distinct(values: Ints) -> list[int]:
    """The distinct values, ascending; an axis nearly always has one."""
    return [int(values[0])] if (values == values[0]).all() else [int(v) for v in np.unique(values)]


def _in_order(positions: Ints, index: Ints) -> Ints:
    """Positions by ascending index, which is nearly always the order that they are in."""
    return positions if (index[1:] >= index[:-1]).all() else positions[np.argsort(index, kind="stable")]


def _read_components(given: Labelled, n: int) -> Bools:
    """Which components some op contracts over, or reduces: whatever has a part in an output is read so somewhere."""
    out = np.zeros(n, bool)
    for pairs in given.reads.values():
        for node, axis in pairs:
            out[given.component[given.env[node][axis]]] = True
    for labels in given.reduced:
        out[given.component[labels]] = True
    return out


def _of_kind(given: Labelled, kind: str) -> Bools:
    out = np.zeros(int(given.component.max()) + 1, bool)
    for axis, k in given.hints:
        if k == kind:
            out[given.component[axis]] = True
    out[0] = False
    return out
