"""The table of harm: measured on the dense model cut part by part, and used as ratios."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import build
from torch import Tensor, nn

import fxprune
from fxprune.studies.sensitivity_table import Curve


class Two(nn.Module):
    """Two branches; the output hardly needs the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 32), nn.Linear(6, 32)
        self.c, self.d = nn.Linear(32, 3), nn.Linear(32, 3)
        with torch.no_grad():
            self.d.weight.mul_(1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x))) + self.d(torch.relu(self.b(x)))


# In float64: the harm of the second branch is a millionth of the outputs' squares.
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def net() -> Two:
    torch.manual_seed(0)
    return Two().double()


@pytest.fixture(scope="module")
def table(net: Two) -> fxprune.Sensitivity:
    with torch.no_grad():
        wanted = net(X)
    data = [(X[:40], wanted[:40]), (X[40:], wanted[40:])]
    return fxprune.sensitivity(
        net,
        "magnitude",  # the loss is zero, and so are its gradients
        example_inputs=X[:2],
        data=data,
        loss=lambda m, b: (m(b[0]) - b[1]).pow(2).mean(),
        progress=False,
    )


def masked_loss(net: Two, layer: str, gone: list[int]) -> float:
    """The same by zeroing what reads the channels."""
    reader = {"a": net.c, "b": net.d}[layer].weight
    with torch.no_grad():
        wanted, saved = net(X), reader.clone()
        reader[:, gone] = 0
        value = [float((net(x) - w).pow(2).mean()) for x, w in ((X[:40], wanted[:40]), (X[40:], wanted[40:]))]
        reader.copy_(saved)
    return sum(value) / 2


def test_values_are_the_loss_without_the_channels(net: Two, table: fxprune.Sensitivity) -> None:
    graph = fxprune.trace(net, X[:2])
    scores = fxprune.score(graph, net, "magnitude")
    assert table.base == pytest.approx(0.0, abs=1e-12)
    assert {c.groups: (c.channels, c.shares) for c in table.curves} == {
        (f"{n}.weight:0",): (32, (3 / 32, 0.25, 0.5, 0.75, 29 / 32)) for n in "ab"
    }
    for curve in table.curves:
        order = np.argsort(scores.values[curve.groups[0]], kind="stable").tolist()
        for share, value in zip(curve.shares, curve.values, strict=True):
            assert value == pytest.approx(masked_loss(net, curve.groups[0][0], order[: round(32 * share)]), rel=1e-6)


def test_as_ratios_it_harms_all_alike_and_meets_the_budget(net: Two, table: fxprune.Sensitivity) -> None:
    graph = fxprune.trace(net, X[:2])
    shares = table.ratios(graph, 0.4)
    assert shares["b.weight:0"] > 0.75 > 0.1 > shares["a.weight:0"]
    small = fxprune.prune(net, "magnitude", 0.4, ratios=table, example_inputs=X[:2], progress=False)
    plan = fxprune.report(small).plan
    assert plan.achieved == pytest.approx(0.4, abs=0.02)
    assert {g: len(c) / 32 for g, c in plan.removed.items()} == {g: s for g, s in shares.items() if s}
    again = fxprune.plan(graph, {g.name: np.arange(32) for g in graph.groups}, ratios=shares)
    assert again.costs == plan.costs


def test_harm_is_monotone_and_knows_its_groups() -> None:
    curves = (Curve(("x", "y"), 8, (0.25, 0.5), (2.0, 1.0)), Curve(("z",), 8, (0.5,), (float("inf"),)))
    table = fxprune.Sensitivity("Net", "loss", 1.5, curves)
    at = np.array([0.125, 0.25, 0.5, 0.75])
    harm = table.harm(["y"], at)
    assert harm is not None
    assert harm == pytest.approx([0.25, 0.5, 0.5, 0.75], abs=1e-6)
    assert (np.diff(harm) > 0).all()
    worst = table.harm(["z"], at)
    assert worst is not None
    assert worst[-1] > 1e29
    assert table.harm(["q"], at) is None
    accuracy = fxprune.Sensitivity("Net", "accuracy", 0.9, (Curve(("x",), 8, (0.5,), (0.6,)),), higher_is_better=True)
    assert accuracy.harm(["x"], np.array([0.5])) == pytest.approx([0.3])


def test_table_csv_and_plot(table: fxprune.Sensitivity, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv(tmp_path / "t.csv"))))
    assert len(rows) == 12
    assert (tmp_path / "t.csv").read_text() == table.to_csv()
    assert float(rows[5]["loss"]) == pytest.approx(table.curves[0].values[-1])
    assert repr(table).splitlines()[1].lstrip().startswith("a.weight:0 (32): 9% ")
    table.plot(tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"


def test_groups_tied_by_a_norm_are_one_part_and_any_metric_will_do() -> None:
    model, inputs = build(["Residual", "CatSkip"], ["Attention"], 3)
    before = [p.clone() for p in model.parameters()]

    def size(m: nn.Module) -> float:
        return float(sum(p.numel() for p in m.parameters()))

    table = fxprune.sensitivity(
        model, "random", shares=[0.5], example_inputs=inputs, metric=size, higher_is_better=True, progress=False
    )
    graph = fxprune.trace(model, inputs)
    assert sorted(g for c in table.curves for g in c.groups) == sorted(g.name for g in graph.groups)
    assert max(len(c.groups) for c in table.curves) > 1
    assert all(v < table.base for c in table.curves for v in c.values)
    assert table.metric == "size"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    some = table.curves[0]
    kept = fxprune.sensitivity(
        model, "random", shares=[0.5], example_inputs=inputs, metric=size, ignore=list(some.groups[0].split(":")[:1]),
        progress=False,
    )  # fmt: skip
    assert some.groups not in {c.groups for c in kept.curves}


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no data": ({}, fxprune.InputsError, "pass data="),
    "no loss": ({"data": [X]}, fxprune.InputsError, "pass loss="),
    "shares": ({"shares": [0.0]}, fxprune.InputsError, r"in \(0, 1\), such as"),
    "nan": (
        {"criterion": "magnitude", "metric": lambda m: float("nan")},
        fxprune.CriterionError,
        "of the dense Two is nan",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input(net: Two, name: str) -> None:
    options, error, text = BAD[name]
    with pytest.raises(error, match=text):
        fxprune.sensitivity(net, example_inputs=X[:2], progress=False, **options)
