"""What prune() does where the module's own Python does not follow the plan."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxprune


def test_literal_in_the_forward_is_held_or_run_as_a_graph() -> None:
    """A width written into the source: its axis is held; where that is too much, the graph becomes the forward."""

    class Literal(nn.Module):
        def __init__(self, wide: int) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, wide), nn.Linear(wide, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).view(2, 8) if self.training else self.a(x).view(-1, 8)
            return self.c(torch.relu(self.b(x)))

    inputs = torch.randn(2, 4)
    held = fxprune.prune(Literal(64), "magnitude", 0.4, example_inputs=inputs, progress=False)
    assert fxprune.report(held).forward == "module"
    assert held.a.out_features == 8
    forced = fxprune.prune(Literal(4), "magnitude", 0.7, example_inputs=inputs, progress=False)
    assert fxprune.report(forced).forward == "graph"
    assert forced(torch.randn(5, 4)).shape == (5, 3)
    assert copy.deepcopy(forced)(inputs).shape == (2, 3)
    given = Literal(4)
    inplace = fxprune.prune(given, "magnitude", 0.7, example_inputs=inputs, inplace=True, progress=False)
    assert inplace is given
    assert given.forward.__self__ is given
    with pytest.raises(fxprune.RewriteError, match="strict"):
        fxprune.prune(Literal(4), "magnitude", 0.7, example_inputs=inputs, strict=True, progress=False)
