"""Criteria and schedulers side by side, after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.schedulers.iterative import Iterative

pytest.importorskip("matplotlib")
X = [torch.randn(8, 6, generator=torch.Generator().manual_seed(k)) for k in range(3)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch[:, :2]).square().mean()


GIVEN: dict[str, Any] = {"data": X[:2], "held_out": X[2:], "loss": loss, "example_inputs": X[0], "progress": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, fxprune.Comparison]:
    out = tmp_path_factory.mktemp("compare")
    asked = {"schedulers": ["one_shot", Iterative(rounds=2)], "training": fxprune.Training(6, learning_rate=0.01)}
    return out, fxprune.compare(net(), ["magnitude", "taylor"], [0.5], seeds=2, out=out, **asked, **GIVEN)


def test_every_criterion_is_trained_by_every_scheduler(made: tuple[Path, fxprune.Comparison]) -> None:
    _, found = made
    assert len(found.rows) == 8
    assert not [r.error for r in found.rows if r.error]
    assert {(r.criterion, r.scheduler, r.seed, r.steps) for r in found.rows} == {
        (c, s, seed, 6) for c in ("magnitude", "taylor") for s in ("one_shot", "Iterative") for seed in (0, 1)
    }
    assert all(r.params == pytest.approx(0.5, abs=0.06) for r in found.rows)
    assert {row[0] for row in found.summary()} >= {"magnitude, one_shot", "taylor, Iterative"}
    assert "with 6 steps of training" in repr(found)
    assert all("±" in row[2] for row in found.summary())


def test_training_makes_the_loss_lower(made: tuple[Path, fxprune.Comparison]) -> None:
    untrained = fxprune.compare(net(), ["magnitude"], [0.5], **GIVEN).rows[0]
    trained = next(r for r in made[1].rows if (r.criterion, r.scheduler) == ("magnitude", "one_shot"))
    assert trained.loss < untrained.loss  # type: ignore[operator]
    assert (untrained.scheduler, untrained.steps) == ("", 0)


def test_rows_are_not_made_again(made: tuple[Path, fxprune.Comparison], monkeypatch: pytest.MonkeyPatch) -> None:
    out, found = made
    monkeypatch.setattr("fxprune.training.run.trained", lambda *_: pytest.fail("made again"))
    asked = {"schedulers": ["one_shot", Iterative(rounds=2)], "training": fxprune.Training(6, learning_rate=0.01)}
    again = fxprune.compare(net(), ["magnitude", "taylor"], [0.5], seeds=2, out=out, **asked, **GIVEN)
    assert again.rows == found.rows
    with pytest.raises(fxprune.InputsError, match="training was"):
        fxprune.compare(net(), ["taylor"], [0.5], schedulers=["one_shot"], steps=7, out=out, **GIVEN)


def test_a_run_that_fails_is_a_row() -> None:
    found = fxprune.compare(net(), ["magnitude"], [0.5], schedulers=["one_shot", "soft"], steps=4, **GIVEN)
    assert [bool(r.error) for r in found.rows] == [False, True]
    assert "at least 20 steps" in found.rows[1].error


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(fxprune.InputsError, match="pass steps="):
        fxprune.compare(net(), ["magnitude"], [0.5], schedulers=["soft"], **GIVEN)
    with pytest.raises(fxprune.InputsError, match="pass data="):
        fxprune.compare(net(), ["magnitude"], [0.5], steps=5, **{**GIVEN, "data": None})
    with pytest.raises(fxprune.InputsError, match="pass one of them"):
        fxprune.compare(net(), ["magnitude"], [0.5], steps=5, training=fxprune.Training(5), **GIVEN)
    with pytest.raises(fxprune.InputsError, match="called the same: soft, soft"):
        fxprune.compare(net(), ["magnitude"], [0.5], schedulers=["soft", "soft"], steps=20, **GIVEN)


def test_a_picture_can_be_read(made: tuple[Path, fxprune.Comparison], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    monkeypatch.setattr("fxprune.studies.comparison.drawn", lambda figure, *_: held.append(figure))
    made[1].plot("x.png")
    (figure,) = held
    loss_axes = figure.axes[0]
    assert loss_axes.get_legend() is None, "the legend stands outside"
    assert [t.get_text() for t in figure.legends[0].get_texts()][-1] == "dense"
    assert "bands: lowest to highest of the seeds" in loss_axes.get_title()
    figure.canvas.draw()
    assert [t.get_text() for t in loss_axes.get_xticklabels()] == ["50%"]
    shown = [t.get_text() for t in loss_axes.get_yticklabels() + loss_axes.get_yticklabels(minor=True) if t.get_text()]
    assert shown, "the values are named"
    assert len(figure.axes) == 2, "memory is drawn where it was measured"
