"""Finished models beside criteria: the same batches, the same costs, rows that are found again."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_nets import tiny_unet
from torch import Tensor, nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from fxprune.studies.comparison import CSV, NAMES

pytest.importorskip("matplotlib")
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def net(hidden: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch[:, :3]).square().mean()


GIVEN: dict[str, Any] = {"example_inputs": X[:1], "data": [X[:8]], "held_out": [X[8:]], "loss": loss, "progress": False}


def test_a_finished_model_is_measured_as_the_others_are() -> None:
    small = fxprune.prune(net(), "magnitude", 0.5, **{k: v for k, v in GIVEN.items() if k != "held_out"})
    theirs = net(4)  # made by whoever
    made = fxprune.compare(net(), ["magnitude"], [0.5], models={"ours": small, "theirs": theirs}, seeds=2, **GIVEN)
    assert [(r.criterion, r.ratio, r.seed) for r in made.rows] == [
        ("magnitude", 0.5, 0),
        ("magnitude", 0.5, 1),
        ("ours", 0.0, 0),
        ("theirs", 0.0, 0),
    ]
    pruned, _, ours, other = made.rows
    assert (ours.loss, ours.params, ours.macs) == pytest.approx((pruned.loss, pruned.params, pruned.macs))
    assert other.loss == pytest.approx(loss(theirs, X[8:]).item())
    assert other.params == pytest.approx(1 - (4 * 4 + 4 + 4 * 3 + 3) / (4 * 16 + 16 + 16 * 3 + 3))
    assert other.macs == pytest.approx(0.75)
    assert all(r.speedup and r.speedup > 0 for r in made.rows)
    assert all(r.dense == pruned.dense for r in made.rows)
    assert [cells[1] for cells in made.summary()] == ["0.5", "given", "given"]
    assert "theirs" in repr(made)


def test_models_alone_and_after_training() -> None:
    alone = fxprune.compare(net(), (), models={"mine": net(8)}, **GIVEN)
    assert [(r.criterion, r.macs) for r in alone.rows] == [("mine", 0.5)]
    assert "without training" in repr(alone)
    trained = fxprune.compare(net(), ["magnitude"], [0.5], models={"mine": net(8)}, steps=3, **GIVEN)
    assert trained.rows[1].loss == alone.rows[0].loss
    assert "with 3 steps of training" in repr(trained)


def test_a_row_is_found_again_and_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fxprune.compare(net(), ["magnitude"], [0.5], models={"mine": net(8)}, out=tmp_path, **GIVEN)
    with monkeypatch.context() as patch:
        patch.setattr("fxprune.studies.compare.trace", lambda *_, **__: pytest.fail("made again"))
        assert fxprune.compare(net(), (), models={"mine": net(8)}, out=tmp_path, **GIVEN).rows == first.rows[1:]
    changed = deepcopy(net(8))
    changed[0].bias.data += 1
    with pytest.raises(fxprune.InputsError, match=r"mine was Sequential .* and now is Sequential"):
        fxprune.compare(net(), (), models={"mine": changed}, out=tmp_path, **GIVEN)


def test_rows_of_an_earlier_fxprune_are_read(tmp_path: Path) -> None:
    first = fxprune.compare(net(), ["magnitude"], [0.5], out=tmp_path, **GIVEN).rows
    lines = (tmp_path / CSV).read_text().splitlines()
    assert lines[1] == ",".join(NAMES)
    old = [lines[0], *(line.rpartition(",")[0] for line in lines[1:])]  # without the last column
    (tmp_path / CSV).write_text("\n".join(old) + "\n")
    (again,) = fxprune.compare(net(), ["magnitude"], [0.5], out=tmp_path, **GIVEN).rows
    assert (again.loss, again.seconds, again.speedup) == (first[0].loss, first[0].seconds, None)
    (tmp_path / CSV).write_text("\n".join([lines[0], "a,b", "1,2"]) + "\n")
    with pytest.raises(fxprune.InputsError, match="has other columns"):
        fxprune.compare(net(), ["magnitude"], [0.5], out=tmp_path, **GIVEN)


def test_what_cannot_be_measured_has_its_error_and_the_others_go_on() -> None:
    models = {"narrow": nn.Linear(3, 3), "fine": net(8)}
    rows = {r.criterion: r for r in fxprune.compare(net(), (), models=models, **GIVEN).rows}
    assert "cannot be multiplied" in rows["narrow"].error
    assert rows["fine"].error == ""
    assert rows["fine"].loss is not None


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(fxprune.InputsError, match="has the name 'magnitude'"):
        fxprune.compare(net(), ["magnitude"], [0.5], models={"magnitude": net()}, **GIVEN)
    with pytest.raises(fxprune.InputsError, match=r"int is neither an nn\.Module nor a pipeline"):
        fxprune.compare(net(), (), models={"mine": 3}, **GIVEN)
    with pytest.raises(fxprune.InputsError, match="at least one criterion or models="):
        fxprune.compare(net(), (), **GIVEN)


def test_the_picture_has_a_point_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    monkeypatch.setattr("fxprune.studies.comparison.drawn", lambda figure, *_: held.append(figure))
    for of in ("params", "memory"):
        asked = {"of": of, "models": {"mine": net(4)}}
        fxprune.compare(net(), ["magnitude"], [0.3, 0.5], **asked, **GIVEN).plot("x.png")
    point, height = (next(line for line in f.axes[0].lines if line.get_label() == "mine") for f in held)
    assert list(point.get_xdata()) == pytest.approx([1 - 35 / 131])
    assert point.get_marker() == "D"
    assert height.get_linestyle() == ":"
    assert [t.get_text() for t in held[0].axes[1].get_yticklabels()] == ["magnitude"]


def test_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    dense = tiny_unet()
    dense.save_pretrained(tmp_path / "dense")
    fxprune.save(fxprune.prune(dense, "magnitude", 0.3, progress=False), tmp_path / "mine")
    ask = ["compare", str(tmp_path / "dense"), "--criteria", "magnitude", "--ratios", "0.2", "--samples", "2"]
    ask += ["--models", f"mine={tmp_path / 'mine'}", "--out", str(tmp_path / "out"), "--quiet"]
    result = CliRunner().invoke(app, ask)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert re.search(r"mine +given +\S+ +(29\.\d|30\.\d)%", result.stdout)
    assert max(map(len, result.stdout.splitlines())) <= 80 or str(tmp_path) in result.stdout
    found = json.loads(CliRunner().invoke(app, [*ask, "--json"]).stdout)
    assert [row["criterion"] for row in found["rows"]] == ["magnitude", "mine"]
    for bad, text in (
        (["--steps", "3"], "pass --data"),
        (["--learning-rate", "0.1"], "pass --steps"),
        (["--models", "mine"], "not of the form NAME=MODEL"),
    ):
        refused = CliRunner().invoke(app, [*ask, *bad])
        assert refused.exit_code == 1
        assert text in refused.stderr
