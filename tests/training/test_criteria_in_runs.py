"""Every criterion with every scheduler: the same groups are scored at every refresh, masks or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.masking.live import LiveMasks
from fxprune.registry import names
from fxprune.scoring.score import Scores, needs_of, score
from fxprune.training import pruner as module

BATCHES = [torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
CRITERIA, SCHEDULERS = sorted(names("criteria")), sorted(names("schedulers"))


class Net(nn.Module):
    """A residual stream of images, a group norm, a batch norm, and an attention whose weight is packed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 12, 1)
        self.batch, self.down, self.layer = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3, padding=1), nn.LayerNorm(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.down(torch.relu(self.batch(self.up(self.norm(h)))))
        t = self.layer(h.flatten(2).mT)
        return self.head((t + self.attention(t, t, t, need_weights=False)[0]).mean(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.fixture(scope="module")
def graph() -> fxprune.ChannelGraph:
    return fxprune.trace(net(), BATCHES[0])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_masked_weights_are_scored_as_the_layers_own(criterion: str, graph: fxprune.ChannelGraph) -> None:
    model = net()
    asked: dict[str, Any] = {"data": BATCHES, "loss": loss if "loss" in needs_of(criterion) else None}
    before = score(graph, model, criterion, **asked)
    masks = LiveMasks(model, graph)
    assert not masks.held
    mask = np.ones(len(graph.keep_all()))
    mask[1:] = np.random.default_rng(0).random(len(mask) - 1)
    masks.set(mask)
    with masks.straight_through():
        after = score(graph, model, criterion, **asked)
    masks.detach()
    assert after.unscored == before.unscored
    assert score(graph, model, criterion, **asked) == before


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_refresh_scores_the_same_groups(
    criterion: str, scheduler: str, graph: fxprune.ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Scores] = []

    def watched(*args: Any, **kwargs: Any) -> Scores:
        seen.append(score(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(module, "score", watched)
    monkeypatch.setattr("fxprune.pruning.prune.analysed", lambda *_: graph)  # traced once
    pruner = fxprune.Pruner(
        net(), scheduler, criterion, 0.3, steps=20, loss=loss, data=BATCHES, example_inputs=BATCHES[0]
    )
    while not pruner.done:
        pruner.step()
    small = pruner.finish()
    assert {s.unscored for s in seen} == {seen[0].unscored}
    assert fxprune.report(small).plan.achieved == pytest.approx(0.3, abs=0.1)


def test_a_group_that_loses_its_score_is_an_error() -> None:
    calls = []

    def forgetful(ctx: Any) -> dict[str, Any]:
        calls.append(ctx)
        groups = ctx.graph.groups if len(calls) == 1 else ctx.graph.groups[1:]
        return {g.name: np.arange(len(g)) for g in groups}

    forgetful.partial = True  # type: ignore[attr-defined]
    pruner = fxprune.Pruner(net(), "iterative", forgetful, 0.3, steps=20, data=BATCHES, example_inputs=BATCHES[0])
    with pytest.raises(fxprune.CriterionError, match=r"forgetful scored 1 groups before .* such as 'stem.weight:0'"):
        [pruner.step() for _ in range(20)]
    pruner.detach()
