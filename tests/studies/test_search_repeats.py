"""A plan that an earlier candidate had is not run again: its metric is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune

pytest.importorskip("optuna")
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
TRIALS = 12


def narrow() -> nn.Sequential:
    """So few channels that two trials in three come to a plan that was there."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


class Counted:
    """The mean output; counts its calls, and may fail at one of them."""

    def __init__(self, fails_at: int = 0) -> None:
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("just this once")
        return float(model(X).mean())


def searched(metric: Counted, trials: int = TRIALS, **more: Any) -> fxprune.Search:
    given: dict[str, Any] = {"criterion": "magnitude", "example_inputs": X, "progress": False}
    return fxprune.search(narrow(), metric, {"params": 0.7}, trials=trials, **given, **more)


def cut(row: Any) -> dict[str, tuple[int, ...]]:
    return {g: gone for g, gone in row.plan.removed.items() if gone}


def distinct(found: fxprune.Search) -> list[dict[str, tuple[int, ...]]]:
    out: list[dict[str, tuple[int, ...]]] = []
    out.extend(c for c in map(cut, found.rows) if c not in out)
    return out


def test_each_plan_is_measured_once_and_every_row_has_its_value() -> None:
    metric = Counted()
    found = searched(metric)
    plans = distinct(found)
    assert len(found.rows) == TRIALS
    assert 1 < len(plans) < TRIALS, "else there is nothing to see here"
    assert metric.calls == 1 + len(plans), "the dense model, and every plan"
    for plan in plans:
        values = {row.value for row in found.rows if cut(row) == plan}
        assert len(values) == 1
        assert None not in values


def test_a_later_call_knows_the_plans_of_the_first(tmp_path: Path) -> None:
    whole = searched(Counted())
    searched(Counted(), trials=4, out=tmp_path)
    metric = Counted()
    found = searched(metric, out=tmp_path)
    assert found.rows == whole.rows
    known = distinct(fxprune.Search("", "", 0.0, {}, {}, found.rows[:4]))
    assert metric.calls == 1 + len(distinct(found)) - len(known)


def test_a_metric_that_failed_is_asked_again() -> None:
    found = searched(Counted(fails_at=2))
    failed = found.rows[0]
    assert "just this once" in failed.error
    again = [row for row in found.rows[1:] if cut(row) == cut(failed)]
    assert again
    assert all(row.value is not None for row in again)
