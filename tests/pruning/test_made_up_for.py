"""Wherever a plan comes from and whatever goes, what stays is corrected where the criterion does so, or it is said."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.criteria.obs import Obs
from fxprune.errors import InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.rewriting.compensation import compensated, makes_up

OBS = Obs(damping=1e-3, select="magnitude")
DATA = [torch.randn(64, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
GIVEN: dict[str, Any] = {"data": DATA, "loss": lambda m, x: m(x).square().mean(), "progress": False}


class Branch(nn.Module):
    """x + W relu(V x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, width), nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Branches(nn.Module):
    """So many branches of one width, between two layers."""

    def __init__(self, depth: int = 6, width: int = 32) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.branches = nn.ModuleList(Branch(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for branch in self.branches:
            x = branch(x)
        return self.last(x)


@pytest.fixture
def net() -> Branches:
    torch.manual_seed(0)
    return Branches().eval()


def pruned(net: nn.Module, criterion: Any, **more: Any) -> nn.Module:
    small: nn.Module = fxprune.prune(net, criterion, example_inputs=DATA[0], **{"ratio": 0.4, **GIVEN, **more})
    return small


def off(net: nn.Module, small: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((small(x) - net(x)).square().mean()) for x in DATA)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("granularity", ["block", "both"])
def test_layers_behind_a_block_that_went_make_up_for_it(net: Branches, granularity: str) -> None:
    plain, fixed = (pruned(net, c, granularity=granularity) for c in ("magnitude", OBS))
    assert fxprune.report(fixed).plan.blocks == fxprune.report(plain).plan.blocks != ()
    assert off(net, fixed) < 0.7 * off(net, plain)


def test_with_a_block_gone_one_pass_gives_what_a_pass_for_each_layer_does(net: Branches) -> None:
    graph = analyse(net, as_inputs(DATA[0]))
    plan = fxprune.plan(graph, fxprune.score(graph, net, "magnitude"), 0.4, granularity="both")
    assert plan.blocks
    assert any(plan.removed.values())
    at_once = compensated(graph, net, plan, OBS, data=DATA)
    one_by_one = compensated(graph, net, plan, OBS, data=iter(DATA))
    assert torch.allclose(weights(at_once), weights(one_by_one), atol=1e-4)
    assert not torch.allclose(weights(at_once), weights(net), atol=1e-2)


@pytest.mark.parametrize("granularity", ["channel", "both"])
def test_a_stock_shape_is_corrected_too(net: Branches, granularity: str) -> None:
    more: dict[str, Any] = {"shape": partial(Branches, 6, 32), "granularity": granularity, "nearest": True}
    plain, fixed = (pruned(net, c, **more) for c in ("magnitude", OBS))
    assert type(fixed) is Branches
    assert fxprune.report(fixed).plan.removed == fxprune.report(plain).plan.removed
    assert bool(fxprune.report(fixed).plan.blocks) == (granularity == "both")
    assert off(net, fixed) < 0.7 * off(net, plain)
    assert all(check.ok for check in fxprune.report(fixed).checks)


def test_what_a_correction_has_to_say_is_told_of_a_stock_shape(net: Branches) -> None:
    small = pruned(net, OBS, shape=partial(Branches, 6, 32), nearest=True, data=[DATA[0][:3]])
    assert "saw fewer samples" in str(fxprune.report(small).scoring)


@pytest.mark.parametrize("granularity", ["channel", "block", "both"])
def test_a_plan_is_carried_out_with_the_same_correction(net: Branches, granularity: str) -> None:
    small = pruned(net, OBS, granularity=granularity)
    plan = fxprune.report(small).plan
    again = fxprune.apply(net, plan, example_inputs=DATA[0], criterion=OBS, **GIVEN)
    assert torch.allclose(weights(again), weights(small), atol=1e-4)
    plain = fxprune.apply(net, plan, example_inputs=DATA[0])
    assert not torch.allclose(weights(plain), weights(small), atol=1e-2)


def test_apply_corrects_another_checkpoint_in_place_and_says_what_it_saw(net: Branches) -> None:
    plan = fxprune.report(pruned(net, "magnitude")).plan
    torch.manual_seed(1)
    other = Branches().eval()
    before = [other(x).detach() for x in DATA]
    plain = fxprune.apply(other, plan, example_inputs=DATA[0])
    given = {**GIVEN, "data": [x[:3] for x in DATA]}
    fixed = fxprune.apply(other, plan, example_inputs=DATA[0], criterion=OBS, inplace=True, **given)
    assert fixed is other
    assert "saw fewer samples" in str(fxprune.report(fixed).scoring)
    with torch.no_grad():
        errors = [
            sum(float((m(x) - y).square().mean()) for x, y in zip(DATA, before, strict=True)) for m in (fixed, plain)
        ]
    assert errors[0] < errors[1]


def test_apply_refuses_what_it_would_not_use(net: Branches) -> None:
    plan = fxprune.report(pruned(net, "magnitude")).plan
    with pytest.raises(InputsError, match="data=, loss= and timesteps= to correct"):
        fxprune.apply(net, plan, example_inputs=DATA[0], data=DATA)
    with pytest.raises(InputsError, match="'magnitude' corrects nothing"):
        fxprune.apply(net, plan, example_inputs=DATA[0], criterion="magnitude")
    assert makes_up("obs")
    assert not makes_up("magnitude")


def test_linear_maps_and_a_correction_for_the_same_blocks_are_refused(net: Branches) -> None:
    with pytest.raises(InputsError, match="leave out one of them"):
        pruned(net, OBS, granularity="both", replace="linear")


@pytest.mark.parametrize("granularity", ["channel", "both"])
def test_a_search_measures_corrected_candidates(net: Branches, granularity: str) -> None:
    pytest.importorskip("optuna")
    given: dict[str, Any] = {"example_inputs": DATA[0], "granularity": granularity, "trials": 3, **GIVEN}
    budgets = {"params": 0.6}
    found = fxprune.search(net, partial(off, net), budgets, criterion=OBS, **given)
    small = fxprune.apply(net, found.best, example_inputs=DATA[0], criterion=OBS, **GIVEN)
    assert found.value == pytest.approx(off(net, small), rel=1e-4)
    assert off(net, small) < 0.7 * off(net, fxprune.apply(net, found.best, example_inputs=DATA[0]))
