"""Averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune


def test_averages_by_hand() -> None:
    line = nn.Linear(1, 1, bias=False)
    average = fxprune.Average(line, 0.5)
    first = line.weight.item()
    with torch.no_grad():
        line.weight.add_(1)
    average.step(line)
    d = min(0.5, 2 / 11)
    assert average.values["weight"].item() == pytest.approx(d * first + (1 - d) * (first + 1))
