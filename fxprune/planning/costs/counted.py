"""Costs that the graph alone tells.

params, channels   exact counts
macs               multiply-accumulates of one forward on the example inputs (see `fxprune.planning.costs.macs`)
memory             bytes of weights and of the activations where these take most (see `fxprune.planning.costs.memory`)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.costs.macs import mac_products, uncounted
from fxprune.planning.costs.memory import memory_of
from fxprune.planning.costs.polynomials import Floats, Product, terms_of

COUNTED = ("params", "macs", "channels", "memory")  # known from the graph alone
MEASURES = (*COUNTED, "latency")  # measured: see `fxprune.planning.latency`
UNITS = {
    "params": "parameters",
    "macs": "multiply-accumulates",
    "channels": "channels",
    "memory": "bytes",
    "latency": "µs",
}
TRIFLE = 1e-12  # of the whole cost: what a channel without a price counts


def amount(of: str, cost: float) -> str:
    """A cost with its unit.

    >>> amount("latency", 10_004.2)
    '10,004 µs'
    """
    return f"{cost:,.0f} {UNITS[of]}"


class Cost(Protocol):
    """What something costs when group g loses `removed[g]` channels."""

    def total(self, removed: Floats) -> float: ...


def _param_products(graph: ChannelGraph) -> list[Product]:
    out: list[Product] = []
    for name in sorted(graph.parameters):
        labels, shape = graph.tensors[name], graph.shapes[name]
        out.append((float(math.prod(s for s, a in zip(shape, labels, strict=True) if a is None)), labels))
    return out


_COSTS: dict[str, Callable[[ChannelGraph], Cost]] = {
    "params": lambda graph: terms_of(graph, _param_products(graph)),
    "macs": lambda graph: terms_of(graph, mac_products(graph)),
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


def require_cost(costs: Costs, measure: str) -> None:
    """Check that a share of a measure means something for a graph.

    Raises:
        BudgetError: nothing of the model counts in it, or an op that reads parameters cannot be counted.
    """
    graph = costs.graph
    if measure == "macs" and (ops := uncounted(graph)):
        raise BudgetError(
            f"of='macs': nobody has told how much {', '.join(ops)} of this {graph.model_class} computes with its "
            "parameters, so a share of all multiply-accumulates would be wrong. Tell it, with "
            "torch.utils.flop_counter.register_flop_formula(op), or use of='params' or of='latency'"
        )
    if dense_cost(costs, measure) <= 0:
        raise BudgetError(
            f"of={measure!r}: this {graph.model_class} has none to remove (no layer counts in it); use of='params'"
        )


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
