"""`CostModel`: every measure that `of=` may name, counted or measured."""

from __future__ import annotations

from fxprune.graph.channels import ChannelGraph
from fxprune.planning.costs.counted import CountedCosts
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.latency import latency_of


class CostModel:
    """Costs of plans of one graph: `cost.of("params", removed)`, where `removed[g]` is the channels group g loses."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._counted = CountedCosts(graph)

    def of(self, measure: str, removed: Floats) -> float:
        """Cost after removal.

        Raises:
            BudgetError: for an unknown measure.
        """
        return latency_of(self.graph).total(removed) if measure == "latency" else self._counted.of(measure, removed)
