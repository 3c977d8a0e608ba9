"""Soft(coarse=True): whole groups first, by a quarter of the samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.schedulers.soft import Soft
from fxprune.scoring.batches import fewer

STEPS = 200


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    seen.append(len(batch[0]))
    return (net(batch[0]) - batch[1]).square().mean()


seen: list[int] = []  # samples of every call of the loss


def samples_scored(soft: Soft, remember: int, size: int) -> tuple[int, int]:
    """Samples that all refreshes of a run look at, and how many refreshes there were."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    batches = [(torch.randn(size, 4), torch.randn(size, 2)) for _ in range(remember)]
    pruner = fxprune.Pruner(net, soft, ratio=0.4, steps=STEPS, data=batches, loss=loss, example_inputs=batches[0][0])
    seen.clear()
    refreshes = 0
    while not pruner.done:
        refreshes += pruner.flow.due
        pruner.step()
    small = pruner.finish()
    assert fxprune.report(small).plan.achieved == pytest.approx(0.4, abs=0.05)
    return sum(seen), refreshes


@pytest.mark.parametrize(("remember", "size"), [(4, 6), (1, 8)])
def test_a_coarse_run_scores_a_quarter_of_the_samples(remember: int, size: int) -> None:
    fine, coarse = (samples_scored(Soft(coarse=c), remember, size) for c in (False, True))
    assert fine[1] == coarse[1] > 1
    assert 0 < coarse[0] <= fine[0] / 4


def test_fewer_batches_are_the_last_ones() -> None:
    many: list[Any] = [torch.full((4, 1), float(i)) for i in range(5)]
    assert [float(b[0]) for b in fewer(many, 0.5)] == [3.0, 4.0]
    assert fewer(many, 1.0) == many
    assert [len(b) for b in fewer(many[:1], 0.5)] == [2]
    assert [len(b) for b in fewer([torch.ones(1, 1)], 0.5)] == [1]
    assert fewer([], 0.5) == []
