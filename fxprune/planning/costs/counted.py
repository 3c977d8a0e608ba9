"""Costs that the graph alone tells.

params, channels   exact counts
macs               multiply-accumulates of one forward on the example inputs, exact
memory             bytes of weights and of the activations where these take most (see `fxprune.planning.costs.memory`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from torch import fx

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.rules.op import is_tensor, op_name, shape_of
from fxprune.planning.costs.memory import memory_of
from fxprune.planning.costs.polynomials import Floats, Product, terms_of

COUNTED = ("params", "macs", "channels", "memory")  # known from the graph alone
MEASURES = (*COUNTED, "latency")  # measured: see `fxprune.planning.latency`
TRIFLE = 1e-12  # of the whole cost: what a channel without a price counts


class Cost(Protocol):
    """What something costs when group g loses `removed[g]` channels."""

    def total(self, removed: Floats) -> float: ...


def _param_products(graph: ChannelGraph) -> list[Product]:
    out: list[Product] = []
    for name in sorted(graph.parameters):
        labels, shape = graph.tensors[name], graph.shapes[name]
        out.append((float(math.prod(s for s, a in zip(shape, labels, strict=True) if a is None)), labels))
    return out


_WEIGHTED = {f"aten::conv{k}d" for k in (1, 2, 3)} | {f"aten::conv_transpose{k}d" for k in (1, 2, 3)} | {"aten::linear"}
_PRODUCTS = {"aten::matmul", "aten::bmm", "aten::mm", "aten::addmm", "aten::baddbmm"}


def _mac_products(graph: ChannelGraph) -> list[Product]:
    return [p for node in graph.traced.graph.nodes for p in _node_products(graph, node)]


def _node_products(graph: ChannelGraph, node: fx.Node) -> list[Product]:
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


def _product(graph: ChannelGraph, parts: Sequence[tuple[fx.Node, Sequence[int]]]) -> Product:
    factor, axes = 1.0, []
    for node, dims in parts:
        for d in dims:
            axis = graph.env[node][d]
            axes.append(axis)
            factor *= 1 if axis is not None else shape_of(node)[d]
    return factor, axes


def _weighted(graph: ChannelGraph, node: fx.Node, name: str) -> Product:
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


_COSTS: dict[str, Callable[[ChannelGraph], Cost]] = {
    "params": lambda graph: terms_of(graph, _param_products(graph)),
    "macs": lambda graph: terms_of(graph, _mac_products(graph)),
    "memory": memory_of,
}


class Costs(Protocol):
    """Costs of plans of one graph: `costs.of("params", removed)`, where `removed[g]` is the channels group g loses."""

    graph: ChannelGraph

    def of(self, measure: str, removed: Floats) -> float: ...


class CountedCosts:
    """The costs that are known from the graph alone."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._costs: dict[str, Cost] = {}

    def of(self, measure: str, removed: Floats) -> float:
        """Cost after removal.

        Raises:
            BudgetError: for an unknown measure.
        """
        if measure == "channels":
            return float(sum(map(len, self.graph.groups)) - removed.sum())
        if measure not in _COSTS:
            raise BudgetError(f"of={measure!r} is unknown; choose one of {', '.join(MEASURES)}")
        if measure not in self._costs:
            self._costs[measure] = _COSTS[measure](self.graph)
        outside = self.graph.outside if measure == "params" else 0
        return outside + self._costs[measure].total(removed)


def dense_cost(costs: Costs, measure: str) -> float:
    """The cost while nothing is removed."""
    return costs.of(measure, np.zeros(len(costs.graph.groups)))


def prices(costs: Costs, measure: str) -> Floats:
    """What a channel of each group costs: what goes with half of the group, over their number; at least a trifle.

    Raises:
        BudgetError: for an unknown measure.
    """
    halves = np.array([max(1, len(g) // 2) for g in costs.graph.groups], float)
    dense = dense_cost(costs, measure)
    each, gone = np.zeros(len(halves)), np.zeros(len(halves))
    for g, half in enumerate(halves):
        gone[g] = half
        each[g] = (dense - costs.of(measure, gone)) / half
        gone[g] = 0.0
    out: Floats = np.maximum(each, TRIFLE * max(dense, 1.0))
    return out
