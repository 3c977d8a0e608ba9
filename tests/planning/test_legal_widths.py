"""The widths that each format demands, in numbers, and how near a budget comes with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune

# inputs and outputs of a linear layer: multiples of
DEMANDED = {
    "int8": (8, 8),
    "int4-g32": (32, 1),
    "int4-g128": (128, 1),
    "nf4": (64, 1),
    "fp8": (16, 16),
    "nvfp4": (16, 16),
    "2:4": (64, 32),
}
HIDDEN = 640


def net() -> nn.Sequential:
    """Two hidden layers, which scores alone would leave at odd widths."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(128, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 32))
    return made.eval()


def widths(legal_for: str | None) -> tuple[nn.Module, list[tuple[int, int]]]:
    x = torch.ones(1, 128)
    small = fxprune.prune(net(), "magnitude", 0.4, legal_for=legal_for, example_inputs=x, progress=False)
    return small, [(m.in_features, m.out_features) for m in small if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("legal_for", DEMANDED)
def test_a_format_gets_the_widths_that_it_demands(legal_for: str) -> None:
    small, found = widths(legal_for)
    inputs, outputs = DEMANDED[legal_for]
    assert [(a % inputs, b % outputs) for a, b in found] == [(0, 0)] * 3
    assert min(found[0][1], found[1][1]) < HIDDEN
    assert fxprune.report(small).misfits == ()
    assert fxprune.report(small).plan.achieved == pytest.approx(0.4, abs=0.1)


def test_without_a_format_they_are_odd() -> None:
    """Otherwise the test above would say nothing."""
    _, found = widths(None)
    assert all(any(a % inputs or b % outputs for a, b in found) for inputs, outputs in DEMANDED.values())
