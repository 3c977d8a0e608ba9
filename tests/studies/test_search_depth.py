"""A search that takes out blocks, too: within every budget, better where depth is what can go, and in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clockwork
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost
from fxprune.planning.limits import Limits
from fxprune.studies.candidates import space_of
from fxprune.studies.depth import BLOCKS, Deep, deep

pytest.importorskip("optuna")
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
GIVEN: dict[str, Any] = {"criterion": "magnitude", "example_inputs": X, "progress": False}
BUDGETS = {"params": 0.5, "macs": 0.5}


class Branch(nn.Module):
    """x + W relu(V x)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def branches(idle: int = 2) -> nn.Sequential:
    """Four branches of which the last do next to nothing, between layers that matter."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), *(Branch() for _ in range(4)), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        for branch in list(net)[5 - idle : 5]:
            for p in branch.parameters():
                p.mul_(0.02)
    return net


def searched(net: nn.Module, **more: Any) -> fxprune.Search:
    target = net(X).detach()
    budgets = more.pop("budgets", BUDGETS)
    given = {"trials": 8, "granularity": "both", **GIVEN, **more}
    return fxprune.search(net, lambda m: float((m(X) - target).square().mean()), budgets, **given)


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return branches()


@pytest.fixture(scope="module")
def found(net: nn.Sequential) -> fxprune.Search:
    return searched(net, trials=16)


@pytest.fixture(scope="module")
def space(net: nn.Sequential) -> Deep:
    graph = fxprune.trace(net, X)
    scores = fxprune.score(graph, net, "magnitude")
    return deep(space_of(graph, scores, BUDGETS, Limits()), scores, Limits())


def test_idle_blocks_go_and_the_network_is_nearer_to_the_dense_one(net: nn.Sequential, found: fxprune.Search) -> None:
    alone = searched(net, trials=16, granularity="channel")
    assert set(found.best.blocks) <= {"3", "4"}
    assert found.best.blocks
    assert alone.value is not None
    assert found.value is not None
    assert found.value < 0.5 * alone.value


def test_every_candidate_keeps_to_every_budget_and_the_counts_are_the_models(
    net: nn.Sequential, found: fxprune.Search
) -> None:
    assert {len(r.plan.blocks) for r in found.rows if r.plan is not None} >= {0, 1, 2}
    for row in found.rows:
        assert row.plan is not None, row.error
        small = fxprune.apply(net, row.plan, example_inputs=X)
        assert sum(p.numel() for p in small.parameters()) == row.costs["params"]
        for measure, share in BUDGETS.items():
            before, after = row.plan.costs[measure]
            assert before == found.dense[measure]
            assert after <= share * before
        if not row.seed:
            assert (row.plan.of, row.plan.ratio) == ("params", 0.5)


def test_the_planners_choices_come_first(found: fxprune.Search) -> None:
    measures = [f"planned by {m}{how}" for m in BUDGETS for how in ("", ", with blocks")]
    assert [r.seed for r in found.rows[:4]] == measures
    plans = [r.plan for r in found.rows[:4]]
    assert [bool(p is not None and p.blocks) for p in plans] == [False, True, False, True]


def test_blocks_go_by_what_they_are_worth_until_the_budgets_hold(space: Deep, net: nn.Sequential) -> None:
    assert set(space.order[:2]) == {"3", "4"}
    dense, held = CostModel(space.graph), []
    for n in range(len(space.order) + 1):
        left = CostModel(space.graph.without(space.order[:n]))
        held.append(all(dense_cost(left, m) <= s * dense_cost(dense, m) for m, s in space.stay.items()))
    assert held == [False] * len(space.order) + [True], "one more is never asked for"
    assert space.most[BLOCKS] == len(space.order) / 4
    assert len(space.order) < 4


@given(st.data())
def test_any_shares_make_a_plan_within_the_budgets_with_so_many_blocks(space: Deep, data: st.DataObject) -> None:
    shares = {name: data.draw(st.floats(0.0, most)) for name, most in space.most.items()}
    made = space.plan(shares)
    assert space.excess(made) <= 1 + 1e-9
    assert len(made.blocks) == max(space.least, round(4 * shares[BLOCKS]))
    assert set(made.blocks) == set(space.order[: len(made.blocks)])
    told = space.shares(made)
    assert told.keys() == shares.keys()
    assert told[BLOCKS] == len(made.blocks) / 4
    assert space.plan(told).costs["params"][1] <= made.costs["params"][1] * (1 + 1e-9)


def test_parts_keep_their_names_where_blocks_have_gone(space: Deep) -> None:
    most = space.most
    shares = {**dict.fromkeys(most, 0.0), BLOCKS: 0.5, "1.up.weight:0": most["1.up.weight:0"]}
    made = space.plan(shares)
    assert len(made.blocks) == 2
    gone = {name: len(cut) for name, cut in made.removed.items() if cut}
    assert set(gone) == {"1.up.weight:0"}
    assert space.shares(made)["1.up.weight:0"] == pytest.approx(gone["1.up.weight:0"] / 32)


def test_what_is_held_stays_and_what_is_asked_in_vain_is_refused(net: nn.Sequential, tmp_path: Path) -> None:
    made = searched(net, ignore=["4"], trials=6)
    assert all("4" not in r.plan.blocks for r in made.rows if r.plan is not None)
    with pytest.raises(
        fxprune.BudgetError, match=r"'block': a search takes 'channel' or 'both'; .*prune\(\.\.\., gran"
    ):
        searched(net, granularity="block")
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with pytest.raises(fxprune.BudgetError, match="has no block that can go"):
        searched(plain)
    searched(net, trials=1, granularity="channel", out=tmp_path)
    with pytest.raises(fxprune.InputsError, match="holds another search: granularity"):
        searched(net, trials=1, out=tmp_path)


def test_what_channels_alone_cannot_reach_blocks_can(net: nn.Sequential) -> None:
    budgets = {"params": 0.5, "macs": 0.5}
    with pytest.raises(fxprune.BudgetError, match="cannot"):
        searched(net, budgets=budgets, granularity="channel", min_width=24)
    made = searched(net, budgets=budgets, min_width=24)
    assert made.rows
    for row in made.rows:
        assert row.plan is not None, row.error
        assert row.plan.blocks
        assert max(row.plan.costs[m][1] / row.plan.costs[m][0] for m in budgets) <= 0.5
    with pytest.raises(fxprune.BudgetError, match="cannot all be met"):
        searched(net, budgets={"params": 0.01}, min_width=24)


def test_a_folder_is_gone_on_with(net: nn.Sequential, found: fxprune.Search, tmp_path: Path) -> None:
    searched(net, trials=5, out=tmp_path)
    made = searched(net, trials=16, out=tmp_path)
    assert made.rows == found.rows


def test_latency_is_a_budget_as_measured(net: nn.Sequential, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    clockwork.install(monkeypatch)
    made = searched(net, budgets={"latency": 0.8, "params": 0.7}, trials=6)
    assert any(r.plan is not None and r.plan.blocks for r in made.rows)
    befores = []
    for row in made.rows:
        assert row.plan is not None, row.error
        before, after = row.plan.costs["latency"]
        befores.append(before)
        assert after <= 0.8 * before
        assert row.costs["params"] <= 0.7 * made.dense["params"]
    np.testing.assert_allclose(befores, made.dense["latency"], rtol=1e-6)
