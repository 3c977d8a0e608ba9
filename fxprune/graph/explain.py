"""`graph.explain(name)`: the shortest path of couplings from an axis to what froze it, or the group it belongs to."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order

from fxprune.graph.channels import ChannelGraph
from fxprune.errors import PlanError
from fxprune.graph.labels import FROZEN, Ints


def explain(graph: ChannelGraph, name: str, axis: int = 0) -> str:
    """See `ChannelGraph.explain`."""
    tensor = name if name in graph.tensors else f"{name}.weight"
    if tensor not in graph.tensors:
        raise PlanError(f"this {graph.model_class} has no tensor {name!r}; names are those of model.named_parameters()")
    if not -len(graph.shapes[tensor]) <= axis < len(graph.shapes[tensor]):
        raise PlanError(f"{tensor} has {len(graph.shapes[tensor])} axes, axis {axis} is asked for")
    labels = graph.tensors[tensor][axis]
    head = f"{tensor} axis {axis} ({graph.shapes[tensor][axis]} positions)"
    if labels is None:
        return f"{head}: has size one, it cannot shrink"
    frozen = graph.component[labels] == 0
    parts = [_group_text(graph, labels)] if not frozen.all() else []
    if frozen.any():
        parts.append(f"frozen ({int(frozen.sum())} positions): {_path(graph, int(labels[frozen][0]))}")
    return f"{head}: " + "; ".join(parts)


def _group_text(graph: ChannelGraph, labels: Ints) -> str:
    found = dict.fromkeys(graph.channel_of[c][0] for c in graph.component[labels].tolist() if c in graph.channel_of)
    if not found:
        return "free, but no parameter goes with it"
    return "prunable in " + ", ".join(f"{graph.groups[g]!r}" for g in list(found)[:3])


def _path(graph: ChannelGraph, start: int) -> str:
    """The ops on the way from a label to FROZEN, and the reason at its end."""
    edges = graph.resolved.edges
    frozen = graph.space.freezes
    a = np.concatenate([e[0] for e in edges] + [f for f, _ in frozen])
    b = np.concatenate([e[1] for e in edges] + [np.zeros_like(f) for f, _ in frozen])
    size = graph.space.size
    matrix = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(size, size)).tocsr()
    _, before = breadth_first_order(matrix, start, directed=False)
    path = [FROZEN]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
    path.reverse()
    steps = list(dict.fromkeys(s for p, q in itertools.pairwise(path) if (s := _edge_name(graph, p, q))))
    last = path[-2]
    reason = next((r for f, r in frozen if last in f), None)
    why = f"{reason.why} at {reason.node}" if reason is not None else "is fixed"
    return f"{why}; reached through {' → '.join(steps)}" if steps else why


def _edge_name(graph: ChannelGraph, p: int, q: int) -> str:
    """The node whose rule tied two labels."""
    for a, b, node in graph.resolved.edges:
        if ((a == p) & (b == q)).any() or ((a == q) & (b == p)).any():
            return node
    return ""
