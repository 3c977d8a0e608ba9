"""What objects show in a notebook: tables, in which nothing of a model's names is markup."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.notebook import ROWS, shown

X = torch.randn(4, 6)


def _loss(net: Any, x: Any) -> Any:
    return net(x).square().mean()


@pytest.fixture(scope="module")
def things() -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = fxprune.trace(net, X)
    scores = fxprune.score(graph, net, "magnitude")
    given: dict[str, Any] = {"example_inputs": X, "data": [X], "loss": _loss, "progress": False}
    return {
        "graph": graph,
        "scores": scores,
        "plan": fxprune.plan(graph, scores, 0.4),
        "report": fxprune.report(fxprune.prune(net, "magnitude", 0.4, example_inputs=X, progress=False)),
        "compare": fxprune.compare(net, ["magnitude", "random"], [0.3, 0.5], held_out=[X], **given),
        "sensitivity": fxprune.sensitivity(net, "magnitude", shares=[0.5], **given),
    }


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("graph", ["0.weight:0", "12"]),
        ("scores", ["0.weight:0", "lowest"]),
        ("plan", ["params", "0.weight:0"]),
        ("report", ["params", "masked = dense"]),
        ("compare", ["magnitude", "random", "0.5"]),
        ("sensitivity", ["0.weight:0", "share gone, loss"]),
    ],
)
def test_objects_show_tables(things: dict[str, Any], name: str, cells: list[str]) -> None:
    text = things[name]._repr_html_()
    assert "<table" in text
    for cell in cells:
        assert cell in text


def test_names_are_no_markup_and_long_tables_are_cut() -> None:
    text = shown("<b>", ["<i>"], [["<script>"]] * (ROWS + 3), ["<u>"])
    for mark in ("<b><b>", "<i>", "<script>", "<u>"):
        assert mark not in text
    assert "... and 3 more" in text
    assert text.count("<tr>") == ROWS + 1


def test_a_comparison_goes_to_csv(things: dict[str, Any], tmp_path: Any) -> None:
    made = things["compare"]
    file = tmp_path / "rows.csv"
    text = made.to_csv(file)
    assert file.read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["criterion"], float(r["ratio"]), float(r["loss"])) for r in rows] == [
        (r.criterion, r.ratio, r.loss) for r in made.rows
    ]


def test_a_comparison_goes_to_pandas_or_says_what_to_install(things: dict[str, Any]) -> None:
    try:
        import pandas  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(fxprune.InputsError, match="pip install pandas"):
            things["compare"].to_pandas()
    else:
        assert list(things["compare"].to_pandas()["criterion"]) == [r.criterion for r in things["compare"].rows]
        table = things["sensitivity"].to_pandas()
        assert len(table) == len(things["sensitivity"].to_csv().splitlines()) - 1
        assert table["share"].max() == max(things["sensitivity"].curves[0].shares)
