"""What a forward draws by numpy or Python is the same in the trace and in every run that is compared."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune


class Masked(nn.Module):
    """While it trains, some steps give way to a learned vector, as in SpecAugment."""

    def __init__(self, by: str, width: int = 24) -> None:
        super().__init__()
        self.by, self.first, self.last = by, nn.Linear(6, width), nn.Linear(width, 3)
        self.instead = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.training:
            n = h.shape[1]
            hit = np.random.rand(n) < 0.5 if self.by == "numpy" else [random.random() < 0.5 for _ in range(n)]
            h[:, torch.from_numpy(np.asarray(hit).nonzero()[0])] = self.instead
        return self.last(h.relu())


@pytest.mark.parametrize("by", ["numpy", "python"])
def test_both_modes_are_proved(by: str) -> None:
    np.random.seed(3)
    random.seed(3)
    small = fxprune.prune(Masked(by), "magnitude", 0.5, example_inputs=torch.randn(2, 40, 6), progress=False)
    told = fxprune.report(small)
    assert told.forward == "module"
    assert len(told.checks) == 2
    assert all(c.ok for c in told.checks)
    assert len(small.instead) < 24


def test_draws_outside_go_on() -> None:
    np.random.seed(5)
    random.seed(5)
    want = np.random.rand(), random.random()
    np.random.seed(5)
    random.seed(5)
    fxprune.trace(Masked("numpy"), torch.randn(2, 40, 6))
    assert (np.random.rand(), random.random()) == want
