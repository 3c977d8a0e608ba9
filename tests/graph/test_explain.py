"""Why an axis stays, and the graph for other tools."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import fxprune


def test_explain_and_networkx() -> None:
    a, b, c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    net = nn.Sequential(OrderedDict(a=a, one=nn.ReLU(), b=b, two=nn.ReLU(), c=c))
    graph = fxprune.trace(net, torch.randn(4, 6))
    assert "prunable in a.weight:0" in graph.explain("a")
    assert "reaches the model's output" in graph.explain("c.weight")
    assert "cannot change" in graph.explain("a", 1) or "fixed" in graph.explain("a", 1)
    with pytest.raises(fxprune.PlanError, match="no tensor"):
        graph.explain("nope")
    drawn = graph.to_networkx()
    assert drawn.nodes["a.weight:0"]["channels"] == 16
    assert "a.bias" in drawn["a.weight:0"]
    assert "2 groups, 32 channels" in repr(graph)
