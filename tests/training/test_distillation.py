"""Distillation: the terms by hand. Whole runs with it are in test_run.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Distillation, Training


def test_logits_are_compared_as_distributions() -> None:
    from fxprune.training.terms import divergence

    a, b = torch.randn(4, 5), torch.randn(4, 5)
    p, q = (b / 2).softmax(-1), (a / 2).softmax(-1)
    want = 4 * (p * (p / q).log()).sum(-1).mean()
    assert torch.allclose(divergence(a, b, 2.0), want, atol=1e-6)
    assert divergence(a, a + 3, 1.0).abs() < 1e-6


class Packing(nn.Module):
    """A block that gives its features twice, as a UNet's last one does, or others beside them."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.linear, self.beside = nn.Linear(4, 4), beside

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return y, (y.relu() if self.beside else y,)


class Packed(nn.Module):
    """It uses the first alone."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList([Packing(beside)]), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks[0](x)[0])


def packed(beside: bool) -> Any:
    torch.manual_seed(0)
    model, x = Packed(beside), torch.randn(8, 4)
    training = Training(3, distill=Distillation(features=1.0))
    how = {"loss": lambda m, b: m(b).square().mean(), "example_inputs": x, "progress": False}
    return fxprune.prune(model, "magnitude", 0.25, data=[x], training=training, **how)


def test_features_are_found_in_what_packs_them() -> None:
    assert len(fxprune.report(packed(beside=False)).history) == 3


def test_features_beside_others_are_refused_by_the_layers_name() -> None:
    with pytest.raises(fxprune.InputsError, match=r"the layer 'blocks\.0' gives 2 tensors, and features are of one"):
        packed(beside=True)
