"""A scale of what no weight makes alone goes into the layers that read it, where nothing else does."""

import math

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Soft(nn.Module):
    """Softmaxed features times a number made from their width, read by one layer or two, or added to something."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.i, self.q, self.v = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.p, self.r, self.o, self.how = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 3), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        y = self.q(x).softmax(-2) * math.sqrt(x.shape[-1]) * self.v(x).detach().exp()
        if self.how == "one":
            return self.o(self.p(y))
        if self.how == "two":
            return self.o(self.p(y.relu()) * self.r(y).sigmoid())
        return self.o(self.p(y + x))


@pytest.mark.parametrize("how", ["one", "two", "added"])
def test_the_layers_behind_take_it(how: str) -> None:
    torch.manual_seed(0)
    model, x = Soft(how), torch.randn(2, 5, 8)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    small = fxprune.prune(model, "magnitude", 0.15, example_inputs=x, progress=False, exact_norms=True)
    made = fxprune.report(small)
    assert made.forward == "module"
    assert all(c.ok for c in fxprune.verify(model, small, fxprune.trace(model, x), made.plan))
    assert (small.get_submodule("i").out_features == 24) == (how == "added")  # there nothing undoes it: the width stays
