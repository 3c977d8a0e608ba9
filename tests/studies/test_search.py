"""Search by a metric: better than the planner, within every budget, the same after a kill, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import clockwork
import pytest
import torch
from torch import nn

import fxprune
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost

pytest.importorskip("optuna")
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
FORK = multiprocessing.get_context("fork")


def misjudged() -> nn.Sequential:
    """Large weights that do nothing, before small ones that matter."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    with torch.no_grad():
        net[0].weight.mul_(100)
        net[0].weight[::2].mul_(0.5)
        net[0].bias[::2] = -1e4  # half of the first layer never fires
        net[2].weight.mul_(0.01)
    return net


class Distance:
    """How far the outputs are from those of the given model."""

    def __init__(self, net: nn.Module) -> None:
        self.target = net(X).detach()

    def __call__(self, model: nn.Module) -> float:
        return float((model(X).detach() - self.target).square().mean())


GIVEN: dict[str, Any] = {"criterion": "magnitude", "example_inputs": X, "progress": False}
BUDGETS = {"params": 0.6, "macs": 0.8}


def searched(net: nn.Module, metric: Callable[[Any], Any] | None = None, **more: Any) -> fxprune.Search:
    return fxprune.search(net, metric or Distance(net), more.pop("budgets", BUDGETS), **{"trials": 12, **GIVEN, **more})


def first_of_each(rows: Iterable[Any]) -> list[Any]:
    """Without the rows whose plan an earlier one has."""
    out: dict[str, Any] = {}
    for row in rows:
        out.setdefault(str({g: gone for g, gone in row.plan.removed.items() if gone}), row)
    return list(out.values())


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return misjudged()


@pytest.fixture(scope="module")
def found(net: nn.Sequential) -> fxprune.Search:
    return searched(net, trials=24)


def test_it_finds_better_than_the_planner_whose_scores_the_metric_contradicts(
    net: nn.Sequential, found: fxprune.Search
) -> None:
    own = next(r for r in found.rows if r.seed == "planned by params")
    assert own.plan is not None
    graph = fxprune.trace(net, X)
    planned = fxprune.plan(graph, fxprune.score(graph, net, "magnitude"), 0.4)
    more = own.plan.diff(planned)
    assert not more.only_second
    assert sum(map(len, more.only_first.values())) <= 1, "what fxprune.plan makes, and what it falls short by"
    assert found.value is not None
    assert own.value is not None
    assert found.value < 0.85 * own.value
    small = fxprune.apply(net, found.best, example_inputs=X)
    assert Distance(net)(small) == pytest.approx(found.value)


def test_every_candidate_keeps_to_every_budget_and_the_counts_are_the_models(
    net: nn.Sequential, found: fxprune.Search
) -> None:
    graph = fxprune.trace(net, X)
    costs = CostModel(graph)
    assert len(found.rows) == 24
    for row in found.rows:
        assert not row.error
        assert row.plan is not None
        for measure, share in BUDGETS.items():
            assert row.plan.cost(measure) <= share * dense_cost(costs, measure)
    small = fxprune.apply(net, found.best, example_inputs=X)
    assert sum(p.numel() for p in small.parameters()) == found.best.cost("params")


def test_the_planners_own_choice_cannot_give_back_a_channel(found: fxprune.Search) -> None:
    """A candidate is as large as the budgets let it be: one more channel of any part is too much."""
    graph = fxprune.trace(misjudged(), X)
    costs = CostModel(graph)
    for row in found.rows[2:]:
        assert row.plan is not None
        gone = torch.tensor([len(row.plan.removed.get(g.name, ())) for g in graph.groups], dtype=torch.float64).numpy()
        for g in range(len(graph.groups)):
            if gone[g]:
                gone[g] -= 1
                assert any(costs.of(m, gone) > share * dense_cost(costs, m) for m, share in BUDGETS.items())
                gone[g] += 1


def test_the_front_is_what_nothing_beats(found: fxprune.Search) -> None:
    def point(r: Any) -> tuple[float, ...]:
        return (r.value, *(r.costs[m] for m in BUDGETS))

    points = [point(r) for r in found.rows]
    for row in found.rows:
        beaten = any(all(a <= b for a, b in zip(p, point(row), strict=True)) and p != point(row) for p in points)
        assert beaten == (point(row) not in [point(r) for r in found.pareto])
    assert found.pareto[0].plan == found.best
    assert list(found.plans) == [r.plan for r in first_of_each(sorted(found.rows, key=lambda r: (r.value, r.number)))]


def test_a_seed_repeats_and_another_does_not(net: nn.Sequential, found: fxprune.Search) -> None:
    again, other = searched(net), searched(net, seed=1)
    assert again.rows == found.rows[:12]
    assert other.rows != again.rows


def test_a_metric_that_fails_is_a_row(net: nn.Sequential) -> None:
    calls: list[int] = []

    def odd(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no such\nthing")
        return float("nan") if len(calls) == 4 else 1.0

    made = searched(net, odd, trials=5, budgets={"params": 0.6})
    assert [r.error for r in made.rows] == ["", "RuntimeError: no such thing", "the odd is nan", "", ""]
    assert [r.value is None for r in made.rows] == [False, True, True, False, False]
    assert made.rows[1].plan is not None
    assert "no such thing" in repr(made)
    assert "no such thing" in made.to_csv()
    assert len(made.plans) == 3


def test_where_all_fail_the_best_says_why(net: nn.Sequential) -> None:
    calls: list[int] = []

    def first_only(model: nn.Module) -> float:
        calls.append(1)
        return 1.0 if len(calls) == 1 else float("inf")

    made = searched(net, first_only, trials=2)
    assert made.value is None
    with pytest.raises(fxprune.InputsError, match=r"none of 2 candidates could be measured; the first: .* is inf"):
        _ = made.best


def test_what_is_asked_in_vain_is_refused(net: nn.Sequential, tmp_path: Path) -> None:
    for budgets, told in (
        ({}, "asks for nothing"),
        ({"weights": 0.5}, "is unknown; choose among params"),
        ({"params": 1e9}, "is the most that may stay"),
        ({"params": 0.0}, "budgets"),
        ({"params": 0.001}, "cannot"),
        ({"macs": 0.5, "params": 0.001}, r"params to \d+.\d% \(asked 0.1%\)"),
    ):
        with pytest.raises(fxprune.BudgetError, match=told):
            searched(net, budgets=budgets)
    with pytest.raises(fxprune.InputsError, match=r"metric\(model\) failed, or gave no number"):
        searched(net, lambda m: "good")
    with pytest.raises(fxprune.CriterionError, match="of the dense Sequential is nan"):
        searched(net, lambda m: float("nan"))
    with pytest.raises(fxprune.BudgetError, match="which a search is to find"):
        searched(net, limits=fxprune.Limits(ratios={"0": 0.5}))
    searched(net, trials=1, out=tmp_path)
    with pytest.raises(fxprune.InputsError, match=r"holds another search: budgets was .* and now is"):
        searched(net, trials=1, out=tmp_path, budgets={"params": 0.5})


def test_an_absolute_budget_and_a_table_of_sensitivities(net: nn.Sequential) -> None:
    table = fxprune.sensitivity(net, metric=Distance(net), shares=(0.5,), **GIVEN)
    made = searched(net, budgets={"params": 500}, trials=2, sensitivity=table)
    assert [r.seed for r in made.rows] == ["planned by params", "by sensitivity"]
    assert all(r.costs["params"] <= 500 for r in made.rows)
    planned, measured = (r.plan for r in made.rows)
    assert planned is not None
    assert measured is not None
    assert planned.removed != measured.removed


def test_latency_is_a_budget_as_measured(net: nn.Sequential, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    clockwork.install(monkeypatch)
    made = searched(net, budgets={"latency": 0.95, "params": 0.7}, trials=4)
    for row in made.rows:
        assert row.plan is not None, row.error
        before, after = row.plan.costs["latency"]
        assert after <= 0.95 * before
        assert row.costs["params"] <= 0.7 * made.dense["params"]


# ---- one folder, several processes ----------------------------------------------------------------------------------


class Noted(Distance):
    """The same, which notes each call in a file; may end the process for good at one of them, or wait for another
    process to be as far, so that both take part on any machine.
    """

    def __call__(self, model: nn.Module) -> float:
        log = Path(os.environ["NOTED"])
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len(log.read_text().split()) == int(os.environ.get("DIES_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        while "MEET" in os.environ and not self._met(log.read_text().split()):
            time.sleep(0.01)
        return super().__call__(model)

    @staticmethod
    def _met(who: list[str]) -> bool:
        """Whether two processes have come to their first candidate, after the dense model."""
        return sum(who.count(pid) > 1 for pid in set(who)) > 1 or who.count(str(os.getpid())) != 2


def process(net: nn.Module, out: Path, noted: Path, **more: str) -> Any:
    def run() -> None:
        os.environ.update(NOTED=str(noted), **more)
        made = searched(net, Noted(net), trials=8, out=out)
        out.with_suffix(f".{os.getpid()}").write_text(made.to_csv())

    started = FORK.Process(target=run)
    started.start()
    return started


def test_a_search_that_was_killed_goes_on_and_ends_the_same(
    net: nn.Sequential, found: fxprune.Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, noted = tmp_path / "out", tmp_path / "noted"
    killed = process(net, out, noted, DIES_AT="5")
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert not (out / "search.csv").exists()
    monkeypatch.setenv("NOTED", str(noted))
    made = searched(net, Noted(net), trials=8, out=out)
    assert made.rows == found.rows[:8]
    calls = len(noted.read_text().split())
    left = len(first_of_each(found.rows[:8])) - 3
    assert calls == 5 + 1 + left, "four had ended, one of the dense model: that one again, and what was left"
    assert searched(net, Noted(net), trials=8, out=out).rows == made.rows
    assert len(noted.read_text().split()) == calls + 1, "nothing is measured twice"
    assert (out / "search.csv").read_text() == made.to_csv()


def test_two_processes_share_the_candidates(net: nn.Sequential, tmp_path: Path) -> None:
    out, noted = tmp_path / "out", tmp_path / "noted"
    both = [process(net, out, noted, MEET="") for _ in range(2)]
    for one in both:
        one.join()
    assert [p.exitcode for p in both] == [0, 0]
    who = noted.read_text().split()
    tables = [out.with_suffix(f".{p.pid}").read_text() for p in both]
    assert len(who) <= 8 + 2, "every candidate once at most, and the dense model by each"
    assert all(who.count(str(p.pid)) > 1 for p in both)
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 1 + 8
