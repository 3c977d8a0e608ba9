"""Models whose Python reads values: they are taken from a run on the example inputs, where export alone gives up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.verification import check_permutation


class Packed(nn.Module):
    """Tokens that a mask leaves out are dropped, the others packed; the longest row decides about a path."""

    def __init__(self, literal: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c, self.literal = nn.Linear(4, 24), nn.Linear(24, 32), nn.Linear(32, 3), literal

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = F.relu(self.a(x[mask]))
        if mask.sum(1).max() > 2:
            y = F.relu(self.b(y.view(-1, 24) if self.literal else y))
        out = torch.zeros(*mask.shape, 32)
        out[mask] = y
        return self.c(out) / max(1, int(mask.sum()))


MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def test_values_are_those_of_the_example_inputs() -> None:
    torch.manual_seed(0)
    model, inputs = Packed().eval(), (torch.randn(2, 4, 4), MASK)
    graph = fxprune.trace(model, inputs)
    assert graph.traced.noted
    assert check_permutation(model, graph).ok
    small = fxprune.prune(model, "magnitude", 0.5, example_inputs=inputs, progress=False)
    assert fxprune.report(small).forward == "module"
    assert small(torch.randn(3, 4, 4), torch.ones(3, 4, dtype=torch.bool)).shape == (3, 4, 3)


def test_such_a_graph_is_no_forward() -> None:
    with pytest.raises(fxprune.RewriteError, match="read from the example inputs"):
        fxprune.prune(
            Packed(literal=True).eval(), "magnitude", 0.9, example_inputs=(torch.randn(2, 4, 4), MASK), progress=False
        )
