"""Why positions are frozen: the nearest stated reason of every label, and the way from one label to FROZEN.

And what an unknown name may have meant.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import breadth_first_order, dijkstra

from fxprune.graph.labels import FROZEN, Freeze, Ints

Edges: TypeAlias = Sequence[tuple[Ints, Ints, str]]
Freezes: TypeAlias = Sequence[tuple[Ints, Freeze]]


def meant(name: str, *known: Iterable[str]) -> str:
    """The names nearest to an unknown one, of each of several lists, as the end of a sentence ("" if none is near)."""
    close = [n for names in known for n in difflib.get_close_matches(name, list(names), n=2, cutoff=0.5)]
    told = " or ".join(map(repr, dict.fromkeys(close)))
    return f"; did you mean {told}?" if told else ""


def nearest_reasons(size: int, edges: Edges, freezes: Freezes) -> tuple[Ints, dict[int, Freeze]]:
    """For every label the nearest one that was frozen for a stated reason (by breadth-first search over the edges;
    negative where there is none), and these reasons."""
    stated: dict[int, Freeze] = {}
    for labels, reason in reversed(freezes):
        stated.update(dict.fromkeys(labels.tolist(), reason))
    if not stated:
        return np.full(size, -1), stated
    _, _, nearest = dijkstra(
        _matrix(size, [(a, b) for a, b, _ in edges]),
        directed=False,
        indices=np.array(sorted(stated), np.int64),
        unweighted=True,
        min_only=True,
        return_predecessors=True,
    )
    return nearest, stated


def way_to_frozen(size: int, edges: Edges, freezes: Freezes, start: int) -> str:
    """The ops on the shortest way from a label to FROZEN, and the reason at its end."""
    matrix = _matrix(size, [*((a, b) for a, b, _ in edges), *((f, np.zeros_like(f)) for f, _ in freezes)])
    _, before = breadth_first_order(matrix, start, directed=False)
    path = [FROZEN]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
    path.reverse()
    steps = list(dict.fromkeys(s for p, q in itertools.pairwise(path) if (s := _edge_name(edges, p, q))))
    reason = next((r for f, r in freezes if path[-2] in f), None)
    why = f"{reason.why} at {reason.node}" if reason is not None else "is fixed"
    return f"{why}; reached through {' → '.join(steps)}" if steps else why


def _matrix(size: int, pairs: Sequence[tuple[Ints, Ints]]) -> csr_matrix:
    """The adjacency matrix of some edges."""
    a = np.concatenate([a for a, _ in pairs]) if pairs else np.zeros(0, np.int64)
    b = np.concatenate([b for _, b in pairs]) if pairs else a
    return coo_matrix((np.ones(len(a), np.float32), (a, b)), shape=(size, size)).tocsr()


def _edge_name(edges: Edges, p: int, q: int) -> str:
    """The node whose rule tied two labels."""
    for a, b, node in edges:
        if ((a == p) & (b == q)).any() or ((a == q) & (b == p)).any():
            return node
    return ""
