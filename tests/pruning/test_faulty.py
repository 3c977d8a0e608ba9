"""Where a proof fails the groups at fault are found, held and reported, and the rest is pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.pruning.realize import faulty


class Sly(nn.Module):
    """Its second layer's width decides which way the forward goes: no op of a trace shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x).relu())
        h = h.relu() if len(list(self.b.bias)) == 24 else h.tanh()
        return self.d(self.c(h).relu())


def test_groups_at_fault_are_held_and_reported() -> None:
    torch.manual_seed(0)
    net, x = Sly(), torch.randn(2, 8)
    graph = analyse(net, as_inputs(x))
    plan = fxprune.plan(graph, {g.name: torch.rand(len(g)).numpy() for g in graph.groups}, 0.4)
    assert faulty(net, graph, plan) == ["b.weight:0"]
    small = fxprune.prune(net, "random", 0.4, example_inputs=x, progress=False)
    told = fxprune.report(small)
    assert told.forward == "module"
    assert told.checks[0].ok
    assert [small.a.out_features < 24, small.b.out_features, small.c.out_features < 24] == [True, 24, True]
    assert "held back by fails the proof" in repr(told)


def test_the_steps_to_a_held_graph_are_replayed() -> None:
    torch.manual_seed(0)
    net, other, x = Sly(), Sly(), torch.randn(2, 8)
    plan = fxprune.report(fxprune.prune(net, "random", 0.4, example_inputs=x, progress=False)).plan
    again = fxprune.apply(other, fxprune.Plan.from_json(plan.to_json()), example_inputs=x)
    assert again.b.out_features == 24
    with pytest.raises(fxprune.PlanError, match="is no step from this graph"):
        fxprune.trace(net, x).revised(["keep 99"])


class Literal(nn.Module):
    """Cuts at a number that stands in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, g = self.a(x).relu(), self.b(x).relu()
        return self.c(torch.cat([h[..., :8], g[..., -16:]], -1))


@pytest.mark.parametrize("verify", [True, False])
def test_numbers_in_the_source_are_never_cut_across(verify: bool) -> None:
    torch.manual_seed(0)
    net, x = Literal(), torch.randn(2, 8)
    try:
        small = fxprune.prune(net, "random", 0.1, example_inputs=x, progress=False, verify=verify, strict=True)
    except (fxprune.BudgetError, fxprune.RewriteError):
        return
    assert small(x).shape == (2, 4)
