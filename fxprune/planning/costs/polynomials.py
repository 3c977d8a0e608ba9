"""Sums of products of axis lengths: what every cost of a plan is made of.

An axis' length after pruning is linear in the number of channels that each group loses, so that a cost is a sparse
matrix product and a few array products: fast enough to search over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Axis

Floats: TypeAlias = npt.NDArray[np.float64]
Product: TypeAlias = tuple[float, Sequence[Axis]]


@dataclass(frozen=True)
class Terms:
    """sum_t factor[t] * prod over its rows of (length[row] - loss[row] @ removed)."""

    factor: Floats
    rows: npt.NDArray[np.int64]  # (terms, most rows a term), padded with the row of constant length one
    length: Floats
    loss: csr_matrix

    def each(self, removed: Floats) -> Floats:
        """The value of every term when group g loses `removed[g]` channels."""
        lengths = self.length - self.loss @ removed
        out: Floats = self.factor * lengths[self.rows].prod(axis=1)
        return out

    def total(self, removed: Floats) -> float:
        return float(self.each(removed).sum())


def terms_of(graph: ChannelGraph, products: Sequence[Product]) -> Terms:
    """Build `Terms` from (factor, axes) products; an axis that is None counts as part of the factor."""
    ids: dict[int, int] = {}
    axes: list[Axis] = []
    table: list[list[int]] = []
    for _, live in products:
        row = []
        for axis in live:
            if axis is None:
                continue
            key = id(axis)
            if key not in ids:
                ids[key] = len(axes) + 1
                axes.append(axis)
            row.append(ids[key])
        table.append(row)
    width = max((len(r) for r in table), default=0) or 1
    rows = np.zeros((len(table), width), np.int64)
    for i, r in enumerate(table):
        rows[i, : len(r)] = r
    group_of = np.full(int(graph.component.max()) + 1, -1)
    for g, group in enumerate(graph.groups):
        group_of[group.components] = g
    sizes = np.array([len(g) for g in graph.groups], float)
    data, at, to = [], [], []
    for i, axis in enumerate(axes, start=1):
        owner = group_of[graph.component[axis]]
        counts = np.bincount(owner[owner >= 0], minlength=len(sizes)) / np.maximum(sizes, 1)
        for g in np.flatnonzero(counts).tolist():
            data.append(counts[g])
            at.append(i)
            to.append(g)
    loss = csr_matrix((data, (at, to)), shape=(len(axes) + 1, len(sizes)))
    length = np.array([1.0] + [float(len(a)) for a in axes if a is not None])
    return Terms(np.array([f for f, _ in products], float), rows, length, loss)
