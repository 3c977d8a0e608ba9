"""Targets with noise that no network can predict: the dense outputs have none of it, and lead where steps are few."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from training_runs import IMAGES, net

import fxprune
from fxprune import Distillation, Training


def distance(distill: Distillation | str) -> float:
    """Of the small network's outputs to those of the dense one, after a few steps on its outputs and much noise."""
    dense = net().eval()
    known = net().eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        target = known(batch)
        return (model(batch) - target - 3 * torch.randn(target.shape, generator=noise)).square().mean()

    training = Training(60, distill=distill)
    how = {"training": training, "data": [IMAGES[:8]], "loss": loss, "example_inputs": IMAGES[:1], "progress": False}
    small = fxprune.prune(dense, "magnitude", 0.5, verify=False, **how)  # type: ignore[arg-type]
    with torch.no_grad():
        return float((small(IMAGES) - dense(IMAGES)).square().mean())


def test_the_dense_outputs_outweigh_the_noise_of_the_target() -> None:
    assert distance("auto") < 0.7 * distance(Distillation(1.0))


def test_a_checkpoint_tells_what_the_default_stood_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run would go on with another weight where a later version has another default."""
    today = Training(1).told()["distill"]
    assert Training(1).told()["distill"] == today
    monkeypatch.setattr("fxprune.training.options.LEADING", 4.0)
    assert Training(1).told()["distill"] != today


def test_the_steps_of_an_own_optimizer_do_not_grow_with_the_teachers_weight() -> None:
    """Adam's do not depend on the scale of the loss; those of plain gradient descent do, and would diverge."""
    assert Training(1).distillation == Distillation(16.0)
    assert Training(1, optimizer=lambda p: torch.optim.SGD(p, 0.1)).distillation == Distillation(1.0)
