"""What scoring will take is told before it starts, by its parts; and what lowers it, where it does not fit."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.scoring import outlook as module
from fxprune.scoring.context import Context
from fxprune.scoring.outlook import outlook
from fxprune.scoring.score import resolve

WIDTH, BATCH = 64, 32


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


@pytest.fixture(scope="module")
def ctx() -> Context:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    graph = fxprune.trace(net, torch.ones(2, WIDTH))
    return Context(graph, net, "of mine", [torch.ones(BATCH, WIDTH)], loss)


def test_each_part_is_that_of_the_criterion(ctx: Context) -> None:
    seen = {name: outlook(ctx, resolve(name)[0]) for name in ("magnitude", "wanda", "obs", "taylor", "gradflow")}
    parameters = sum(p.numel() for p in ctx.model.parameters())
    one = 4 * BATCH * WIDTH  # bytes of one layer's activations
    assert {s.weights for s in seen.values()} == {4 * parameters}
    assert seen["magnitude"].beside == 0
    assert seen["wanda"].gradients == seen["obs"].gradients == 0
    assert seen["wanda"].activations == 2 * one  # a layer's input and output; what was before is gone
    assert seen["wanda"].moments == 4 * 3 * WIDTH
    assert seen["obs"].moments == 4 * 2 * WIDTH**2  # the network's own inputs cannot go
    assert seen["taylor"].gradients == 4 * (parameters + WIDTH**2)
    assert seen["taylor"].activations == pytest.approx(1.5 * (4 * one + 4 * BATCH * 4))
    assert seen["gradflow"].beside > seen["taylor"].beside


def test_it_is_logged_before_anything_runs(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def counted(model: nn.Module, batch: Tensor) -> Tensor:
        told.append(len(caplog.messages))
        return loss(model, batch)

    with caplog.at_level(logging.INFO, "fxprune"):
        scores = fxprune.score(ctx.graph, ctx.model, "taylor", data=ctx.data, loss=counted)
    assert "criterion 'taylor': memory: at most" in caplog.messages[0]
    assert told[0] == 1
    assert scores.notes == ()


def test_much_of_it_is_noted(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    scores = fxprune.score(ctx.graph, ctx.model, "wanda", data=ctx.data)
    assert "of activations" in scores.notes[0]


@pytest.mark.parametrize(("free", "warned"), [(1 << 40, False), (10_000, True)])
def test_what_lowers_it_is_named_where_it_does_not_fit(
    free: int, warned: bool, ctx: Context, monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    fxprune.score(ctx.graph, ctx.model, "taylor", data=ctx.data, loss=loss)
    assert [("smaller parts" in str(w.message), "checkpointing" in str(w.message)) for w in recwarn] == (
        [(True, True)] if warned else []
    )
