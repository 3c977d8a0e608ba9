"""Laws on random networks: the permutation certificate, masked = dense, budgets and constraints.

FXPRUNE_EXAMPLES sets how many networks are drawn (2,000 was run once; CI draws fewer).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, SETTINGS, build
from torch import nn

from fxprune.errors import BudgetError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.masking.comparison import outputs
from fxprune.planning.planner import plan
from fxprune.rewriting.rewrite import rewrite
from fxprune.verification import check_dense, check_permutation


def random_scores(graph: ChannelGraph, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.random(len(g)) for g in graph.groups}


@SETTINGS
@given(NETWORKS, st.sampled_from([0.2, 0.4, 0.6]))
def test_pruned_network_is_the_masked_network(network: tuple[list[str], list[str], int], ratio: float) -> None:
    model, inputs = build(*network)
    graph = analyse(model, as_inputs(inputs))
    certificate = check_permutation(model, graph, seed=network[2])
    assert certificate.ok, certificate
    try:
        made = plan(graph, random_scores(graph, network[2]), ratio)
    except BudgetError:
        return
    small = rewrite(model, graph, made).model
    check = check_dense(model, small, graph, made)
    assert check.ok, check
    have = sum(p.numel() for p in small.parameters())
    assert have == made.costs["params"][1]
    for node, change in made.norms.items():
        assert change.after >= 1, node
    # another batch size works
    assert outputs(small, as_inputs((torch.randn(3, *inputs[0].shape[1:]),)))[0].shape[0] == 3


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_larger_ratio_never_costs_more(ratio: float, seed: int) -> None:
    model, inputs = build(["Conv", "Residual", "CatSkip"], ["Attention", "Mlp"], seed)
    graph = analyse(model, as_inputs(inputs))
    scores = random_scores(graph, seed)
    low, high = plan(graph, scores, ratio), plan(graph, scores, ratio + 0.05)
    assert high.costs["params"][1] <= low.costs["params"][1]
    assert plan(graph, scores, ratio) == low


class Pulled(nn.Module):
    """One attribute is the width of two layers that must be able to differ, and half of it a third."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.b(torch.relu(self.a(x)))
        return self.c(h.view(x.shape[0], self.width // 2, 2).sum(-1))


def test_attribute_inside_an_expression_is_solved() -> None:
    model = Pulled().eval()
    graph = analyse(model, as_inputs(torch.randn(2, 4)))
    made = plan(graph, random_scores(graph, 0), 0.5)
    small = rewrite(model, graph, made).model
    assert check_dense(model, small, graph, made).ok
    assert small.width == small.b.out_features < 8
