"""A latency is met by the finished network, and every result says how fast it is.  Times are arithmetic here."""

from __future__ import annotations

from pathlib import Path

import clockwork
import pytest
import torch
from clockwork import net
from torch import nn

import fxprune
from fxprune.pruning import timing
from fxprune.pruning.meeting import TRIES
from fxprune.reporting.speed import NEAR, Timing

X = torch.ones(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))


def test_the_finished_network_is_as_fast_as_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.install(monkeypatch, between=40e-6)  # of 146 µs that the ops take: the table alone comes to 1.65x
    small = fxprune.prune(net(), "magnitude", 0.5, of="latency", example_inputs=X, progress=False)
    told = fxprune.report(small)
    assert told.timing is not None
    assert told.timing.tries > 1
    assert abs(told.speedup / 2 - 1) <= NEAR  # type: ignore[operator]
    assert told.plan.ratio == 0.5
    assert told.plan.achieved == pytest.approx(told.timing.share)
    assert told.plan.costs["latency"] == pytest.approx((told.timing.before * 1e6, told.timing.after * 1e6))
    assert "asked 2.00x: within 3%" in repr(told)


def test_a_speed_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.install(monkeypatch, between=1e-3)  # nothing shrinks that
    small = fxprune.prune(net(), "magnitude", 0.5, of="latency", example_inputs=X, progress=False)
    made = fxprune.report(small).timing
    assert made is not None
    assert made.tries <= TRIES
    assert made.speedup < 1.2
    assert f"asked 2.00x: {-made.off:.1%} too slow" in str(made)


def test_a_target_is_of_the_finished_network(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.install(monkeypatch, between=20e-6)
    small = fxprune.prune(net(), "magnitude", target=90.0, of="latency", example_inputs=X, progress=False)
    assert fxprune.report(small).plan.cost("latency") == pytest.approx(90, rel=NEAR)


def test_the_nearest_of_all_tries_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every network but the second is far off."""
    clockwork.install(monkeypatch)
    shares = iter([0.3, 0.45, 0.2, 0.1])
    monkeypatch.setattr(timing, "seconds_of", lambda *_: [1.0, 1 - next(shares)])
    small = fxprune.prune(net(), "magnitude", 0.5, of="latency", example_inputs=X, progress=False)
    made = fxprune.report(small).timing
    assert made is not None
    assert (made.tries, made.share) == (TRIES, pytest.approx(0.45))


def test_other_budgets_are_timed_at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def seconds(models: object, graph: object, rounds: int) -> list[float]:
        asked.append(rounds)
        return [0.3, 0.2]

    monkeypatch.setattr(timing, "seconds_of", seconds)
    small = fxprune.prune(net(), "magnitude", 0.4, example_inputs=X, progress=False)
    told = fxprune.report(small)
    assert asked == [timing.GLANCE]
    assert "speed: 1.50x, 300 ms -> 200 ms a forward, measured on cpu" in repr(told)
    assert "1.50x" in told._repr_html_()
    assert told.speedup == pytest.approx(1.5)


def test_where_a_forward_takes_long_it_is_counted_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timing, "HEAVY", {"cpu": 10})
    monkeypatch.setattr(timing, "seconds_of", lambda *_: pytest.fail("timed all the same"))
    small = fxprune.prune(net(), "magnitude", 0.4, example_inputs=X, progress=False)
    told = fxprune.report(small)
    before, after = told.plan.costs["macs"]
    assert told.timing is None
    assert told.speedup == before / after > 1
    text = f"at most about {before / after:.2f}x, by its multiply-accumulates"
    assert text in repr(told)
    assert text in repr(told.plan)
    assert text in told.to_html(tmp_path / "r.html").read_text(encoding="utf-8")


def test_timing_leaves_a_model_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2)).train()
    x = torch.randn(8, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False)
    assert torch.equal(torch.rand(2), drawn)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert fxprune.report(small).timing is not None


def test_two_cuts_count_together() -> None:
    first, second = Timing(0.4, 0.2, 0.5, asked=0.5), Timing(0.18, 0.09, 0.5, asked=0.5)
    both = second.since(first)
    assert both.speedup == pytest.approx(4)
    assert both.asked == pytest.approx(0.75)
    assert both.off == pytest.approx(0)


@pytest.mark.parametrize(
    ("of", "unit"), [("params", "parameters"), ("macs", "multiply-accumulates"), ("memory", "bytes")]
)
def test_errors_name_units(of: str, unit: str) -> None:
    given = {"of": of, "example_inputs": X, "progress": False}
    with pytest.raises(fxprune.BudgetError, match=rf"down to [\d,]+ {unit} of [\d,]+\. In the way"):
        fxprune.prune(net(), "magnitude", 0.9, max_ratio=0.1, **given)
    with pytest.raises(fxprune.BudgetError, match=rf"what stays of the [\d,]+ {unit} of this Sequential"):
        fxprune.prune(net(), "magnitude", target=1e12, **given)
