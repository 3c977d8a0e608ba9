"""of="latency": tables on disk, predictions over widths, the search that meets them.  No test asserts a time."""

from __future__ import annotations

import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import clockwork
import numpy as np
import pytest
import torch
from clockwork import net, seconds_of
from torch import Tensor, nn

import fxprune
from fxprune.planning import planner
from fxprune.planning.costs.latency_table import Table, cache_folder
from fxprune.planning.costs.stopwatch import clock, take_turns
from fxprune.planning.latency import Bench, Left, _random, latency_of

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times are arithmetic; grows by one at each run."""
    return clockwork.install(monkeypatch)


def unpruned(graph: fxprune.ChannelGraph) -> fxprune.Plan:
    """The plan that removes nothing."""
    return fxprune.Plan(graph.model_class, graph.fingerprint, removed={}, sizes={g.name: len(g) for g in graph.groups})


def test_the_fit_knows_a_sum_of_products(runs: list[int]) -> None:
    model = net()
    graph = fxprune.trace(model, X)
    predicted = latency_of(graph, progress=False)
    nothing = np.zeros(len(graph.groups))
    dense = predicted.total(nothing)
    assert dense == pytest.approx(predicted.at(Left.whole(graph))[0], rel=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        removed = np.array([rng.integers(len(g)) for g in graph.groups], float)
        assert predicted.total(removed) < dense
        assert predicted.total(removed / 2) > predicted.total(removed)
    scores = {g.name: rng.random(len(g)) for g in graph.groups}
    plan = fxprune.plan(graph, scores, 0.4, "params")
    small = fxprune.rewrite(model, graph, plan).model
    lost = np.array([len(plan.removed.get(g.name, ())) for g in graph.groups], float)
    assert dense - predicted.total(lost) == pytest.approx(1e6 * (seconds_of(model) - seconds_of(small)), rel=1e-2)


def test_a_plan_meets_the_latency(runs: list[int]) -> None:
    model = net()
    small = fxprune.prune(model, "magnitude", 0.4, of="latency", example_inputs=X, progress=False)
    plan = fxprune.report(small).plan
    before, after = plan.costs["latency"]
    assert plan.achieved == pytest.approx(0.4, abs=0.01)
    assert before - after == pytest.approx(1e6 * (seconds_of(model) - seconds_of(small)), abs=0.01)
    timing = fxprune.report(small).timing
    assert timing is not None
    assert timing.before > 0 < timing.after
    assert f"{timing.predicted:.1%} predicted" in repr(fxprune.report(small))


def test_a_table_is_measured_once(runs: list[int], folder: Path) -> None:
    graph = fxprune.trace(net(), X)
    scores = {g.name: np.arange(len(g), dtype=float) for g in graph.groups}
    first = fxprune.plan(graph, scores, 0.3, "latency")
    count = len(runs)
    assert count
    assert fxprune.plan(fxprune.trace(net(), X), scores, 0.3, "latency") == first
    assert len(runs) == count
    latency_of(fxprune.trace(net(), X[:1]), progress=False)
    assert len(runs) > count, "another batch is another network"
    assert len(list(folder.glob("latency-*.json"))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({"format": 1, "rows": {"a": [1.0, -1.0]}}),
        lambda text: json.dumps({"format": 1, "rows": {"a": "fast"}}),
        lambda text: '{"format": 1, "rows": {"a": [NaN]}}',
    ],
)
def test_a_damaged_table_is_measured_anew_with_a_warning(runs: list[int], folder: Path, damage: Any) -> None:
    latency_of(fxprune.trace(net(), X), progress=False)
    (file,) = folder.glob("latency-*.json")
    rows = json.loads(file.read_text())["rows"]
    file.write_text(damage(file.read_text()))
    count = len(runs)
    with pytest.warns(UserWarning, match="is damaged .* measured anew"):
        latency_of(fxprune.trace(net(), X), progress=False)
    assert len(runs) == 2 * count
    assert json.loads(file.read_text())["rows"] == rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latency_of(fxprune.trace(net(), X), progress=False)


def test_a_folder_that_cannot_be_written_costs_the_cache_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("FXPRUNE_CACHE", str(folder / "file"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        row = Table.of(torch.device("cpu"), torch.float32).get("a", lambda: [1.0])
    assert row == [1.0]


def test_where_tables_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fxprune"
    names = {Table.of(torch.device("cpu"), t).path.name for t in (torch.float32, torch.bfloat16)}
    assert len(names) == 2, "number types have tables of their own"


def test_what_was_planned_is_measured_and_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = fxprune.trace(net(), X)
    asked: list[float] = []

    class Slower:
        """Plans lose 0.8 of what is predicted."""

        def at(self, left: Left) -> tuple[float, float]:
            return 100.0, 100.0 - 80.0 * asked[-1]

    def attempt(share: float) -> fxprune.Plan:
        asked.append(share)
        return unpruned(graph)

    monkeypatch.setattr(planner, "latency_of", lambda graph: Slower())
    made = planner.settle(attempt, graph, 0.4)
    assert asked[:2] == [0.4, pytest.approx(0.48)]
    assert made.achieved == pytest.approx(0.4, abs=planner.NEAR)
    assert made.ratio == 0.4
    assert made.costs["latency"][1] == pytest.approx(60, abs=1)


def test_a_time_that_the_limits_do_not_reach_is_an_error_not_a_near_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = fxprune.trace(net(), X)
    asked: list[float] = []
    lost = 0.5

    class Slower:
        def at(self, left: Left) -> tuple[float, float]:
            return 100.0, 100.0 * (1 - lost * asked[-1])

    def attempt(share: float) -> fxprune.Plan:
        if share > 0.5:
            raise fxprune.BudgetError("no further")
        asked.append(share)
        return unpruned(graph)

    monkeypatch.setattr(planner, "latency_of", lambda graph: Slower())
    with pytest.raises(fxprune.BudgetError, match=r"falls by 20\.0% at most\. Ask for ratio=0\.20") as raised:
        planner.settle(attempt, graph, 0.4)
    assert raised.value.reachable == pytest.approx(0.2)
    lost = 0.96  # 0.384 of 0.4, and the next attempt is within reach
    assert planner.settle(attempt, graph, 0.4).achieved == pytest.approx(0.4, abs=planner.NEAR)


def test_real_laps_cover_every_node() -> None:
    graph = fxprune.trace(net(), X)
    bench = Bench.of(graph, Left.whole(graph))
    laps = bench.laps()
    assert laps.shape == (len(graph.traced.graph.nodes),)
    assert (laps >= 0).all()
    assert all(math.isfinite(float(t.sum())) for t in bench.state.values())
    shapes = {k: tuple(v.shape) for k, v in bench.state.items()}
    assert shapes == {k: tuple(v.shape) for k, v in net().state_dict().items()}


def test_turns_are_fair_and_the_first_does_not_count() -> None:
    order: list[str] = []
    seconds = take_turns([lambda: order.append("a"), lambda: order.append("b")], torch.device("cpu"), rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(s) for s in seconds] == [3, 3]


def test_no_latency_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    graph = fxprune.trace(model, torch.randn(2, 6, device="meta"))
    with pytest.raises(fxprune.BudgetError, match="move the model to the device"):
        fxprune.plan(graph, {g.name: np.ones(len(g)) for g in graph.groups}, 0.3, "latency")


def test_random_numbers_are_left_alone(runs: list[int]) -> None:
    graph = fxprune.trace(net(), X)
    torch.manual_seed(3)
    expected: Tensor = torch.rand(1)
    torch.manual_seed(3)
    latency_of(graph, progress=False)
    assert torch.equal(torch.rand(1), expected)


def test_one_thread_counts_its_own_seconds_and_several_those_of_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, on, expected in ((1, "cpu", time.thread_time), (2, "cpu", time.perf_counter)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert clock(torch.device(on)) is expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert clock(torch.device("cuda")) is time.perf_counter


def test_random_weights_keep_activations_at_about_one() -> None:
    matrix, vector, index = torch.empty(64, 256), torch.empty(32), torch.empty(4, dtype=torch.int64)
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    assert (x @ _random(matrix, [64, 256]).T).std().item() == pytest.approx(1.0, rel=0.2)
    assert _random(matrix.T, [256, 64]).stride() == (1, 256)
    scale = _random(vector, [32])
    assert scale.min() >= 0.5
    assert scale.max() <= 1.5
    assert not _random(index, [4]).any()
