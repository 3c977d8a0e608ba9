"""What a run has timed is saved with the model, with the device, and comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.reporting.report import attach, report
from fxprune.reporting.speed import Timing
from fxprune.saving import checksums

X = torch.randn(4, 8)
TIMED = Timing(0.3, 0.2, predicted=0.31, asked=0.35, device="a fast card", tries=2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small = fxprune.prune(net(), "magnitude", 0.4, example_inputs=X, progress=False)
    attach(small, replace(report(small), timing=TIMED))
    return fxprune.save(small, tmp_path / "m")


def test_a_loaded_report_tells_the_speed_and_where_it_was_measured(folder: Path) -> None:
    told = report(fxprune.load(folder, model=net()))
    assert told.timing == TIMED
    assert "speed: 1.50x, 300 ms -> 200 ms a forward, measured on a fast card" in repr(told)
    assert "- speed: 1.50x" in (folder / "README.md").read_text(encoding="utf-8")
    assert "measured on a fast card" in told.to_html(folder / "r.html").read_text(encoding="utf-8")


def test_a_cut_on_another_device_does_not_multiply(folder: Path) -> None:
    loaded = fxprune.load(folder, model=net())
    again = fxprune.prune(loaded, "magnitude", 0.2, example_inputs=X, progress=False)
    assert report(again).timing is None
    assert report(again).speed.startswith("speed: at most about")
    attach(loaded, replace(report(loaded), timing=replace(TIMED, device="cpu, 1 thread")))
    second = Timing(0.2, 0.1, device="cpu, 1 thread")
    assert second.since(report(loaded).timing).speedup == pytest.approx(3)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"before": 0.0}, "not two times"),
        ({"after": float("inf")}, "not two times"),
        ({"before": "soon"}, "not a number"),
        ({"asked": 1.0}, "not below 1"),
        ({"device": 3}, "device is a int"),
        ({"tries": -1}, "tries is -1"),
        (None, "not a dict|is missing"),
    ],
)
def test_a_forged_time_is_refused(folder: Path, entry: dict[str, Any] | None, text: str) -> None:
    data = json.loads((folder / "fxprune.json").read_text())
    data["timing"] = [1, 2] if entry is None else data["timing"] | entry
    del data[checksums.ENTRY]
    (folder / "fxprune.json").write_text(json.dumps(data))
    with pytest.raises(fxprune.SaveError, match=text):
        fxprune.load(folder, model=net())


def test_older_folders_have_none(folder: Path) -> None:
    data = json.loads((folder / "fxprune.json").read_text())
    del data["timing"], data[checksums.ENTRY]
    (folder / "fxprune.json").write_text(json.dumps(data))
    assert report(fxprune.load(folder, model=net())).timing is None
