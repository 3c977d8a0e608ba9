"""Exact cost of a plan, from the graph's shapes: parameters, multiply-accumulates, channels.

A count is a sum of products of axis lengths.  An axis' length after pruning is linear in the number of channels that
each group loses, so a cost is a sparse matrix product and a few array products: fast enough to search over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from torch import fx

from fxprune.channels import ChannelGraph
from fxprune.errors import BudgetError
from fxprune.labels import Axis
from fxprune.rules.op import is_tensor, op_name, shape_of

Floats = npt.NDArray[np.float64]
MEASURES = ("params", "macs", "channels")


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


def _terms(graph: ChannelGraph, products: Sequence[tuple[float, Sequence[Axis]]]) -> Terms:
    """Build `Terms` from (factor, live axes) products."""
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


def _param_products(graph: ChannelGraph) -> list[tuple[float, Sequence[Axis]]]:
    out: list[tuple[float, Sequence[Axis]]] = []
    for name in sorted(graph.parameters):
        labels, shape = graph.tensors[name], graph.shapes[name]
        out.append((float(math.prod(s for s, a in zip(shape, labels, strict=True) if a is None)), labels))
    return out


_WEIGHTED = {f"aten::conv{k}d" for k in (1, 2, 3)} | {f"aten::conv_transpose{k}d" for k in (1, 2, 3)} | {"aten::linear"}
_PRODUCTS = {"aten::matmul", "aten::bmm", "aten::mm", "aten::addmm", "aten::baddbmm"}


def _mac_products(graph: ChannelGraph) -> list[tuple[float, Sequence[Axis]]]:
    return [p for node in graph.traced.graph.nodes for p in _node_products(graph, node)]


def _node_products(graph: ChannelGraph, node: fx.Node) -> list[tuple[float, Sequence[Axis]]]:
    if node.op != "call_function" or not is_tensor(node):
        return []
    name = op_name(node.target)
    inputs = [n for n in node.all_input_nodes if is_tensor(n)]
    if name in _WEIGHTED:
        return [_weighted(graph, node, name)]
    if name in _PRODUCTS:
        a = inputs[-2] if name in ("aten::addmm", "aten::baddbmm") and len(inputs) > 2 else inputs[0]
        return [_product(graph, [(node, range(len(shape_of(node)))), (a, [len(shape_of(a)) - 1])])]
    if name == "aten::scaled_dot_product_attention":
        q, k = node.args[:2]
        assert isinstance(q, fx.Node)
        assert isinstance(k, fx.Node)
        rank = len(shape_of(q))
        return [_product(graph, [(n, range(rank)), (k, [rank - 2])]) for n in (q, node)]
    return []


def macs_of(graph: ChannelGraph, node: fx.Node) -> float:
    """Multiply-accumulates of one node, as it is."""
    return sum(f * math.prod(len(a) for a in axes if a is not None) for f, axes in _node_products(graph, node))


def _product(graph: ChannelGraph, parts: Sequence[tuple[fx.Node, Sequence[int]]]) -> tuple[float, Sequence[Axis]]:
    factor, axes = 1.0, []
    for node, dims in parts:
        for d in dims:
            axis = graph.env[node][d]
            axes.append(axis)
            factor *= 1 if axis is not None else shape_of(node)[d]
    return factor, axes


def _weighted(graph: ChannelGraph, node: fx.Node, name: str) -> tuple[float, Sequence[Axis]]:
    """Each weight is used once an output position (for transposed convolutions: once an input position)."""
    x, w = node.args[0], node.args[1]
    assert isinstance(x, fx.Node)
    assert isinstance(w, fx.Node)
    rank = len(shape_of(w))
    if name == "aten::linear":
        places: tuple[fx.Node, Sequence[int]] = (x, range(len(shape_of(x)) - 1))
    else:
        at = x if "transpose" in name else node
        n = len(shape_of(at))
        places = (at, [d for d in range(n) if d != n - rank + 1])
    return _product(graph, [(w, range(rank)), places])


class CostModel:
    """Costs of plans of one graph: `cost.of("params", removed)`, where `removed[g]` is the channels group g loses."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._terms = {"params": _terms(graph, _param_products(graph)), "macs": _terms(graph, _mac_products(graph))}

    def of(self, measure: str, removed: Floats) -> float:
        """Cost after removal.

        Raises:
            BudgetError: for an unknown measure.
        """
        if measure == "channels":
            return float(sum(map(len, self.graph.groups)) - removed.sum())
        if measure not in self._terms:
            raise BudgetError(f"of={measure!r} is unknown; choose one of {', '.join(MEASURES)}")
        outside = self.graph.outside if measure == "params" else 0
        return outside + self._terms[measure].total(removed)
