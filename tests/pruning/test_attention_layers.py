"""nn.MultiheadAttention makes query, key and value from parts of one weight and bias: its scale is kept in these."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Translator(nn.Module):
    """The attention across two sequences makes its queries apart from keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.t = nn.Linear(6, 32), nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.o = nn.Linear(32, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.o(self.t(self.i(a), self.i(b)))


class Weighed(nn.Module):
    """Attention that gives its weights computes them itself, with a scale of its own."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(6, 32), nn.Linear(32, 3)
        self.seeds = nn.Parameter(torch.randn(1, 4, 32))
        self.a, self.b = (nn.MultiheadAttention(32, 4, batch_first=True, bias=bias) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.i(x), self.i(y)
        x = x + self.a(x, y, y)[0]
        seeds = self.seeds.expand(len(x), -1, -1)
        return self.o(x + self.b(x, seeds, seeds)[0])


NETS: dict[str, Any] = {
    "translator": Translator,
    "weighed": lambda: Weighed(True),
    "weighed, no bias": lambda: Weighed(False),
}


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_own_forward_follows(name: str) -> None:
    torch.manual_seed(0)
    net, x = NETS[name](), (torch.randn(2, 5, 6), torch.randn(2, 4, 6))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))  # biases are zero at first
    for unit in ("heads", "head_dim"):
        small = fxprune.prune(
            copy.deepcopy(net), "magnitude", 0.45, example_inputs=x, attention=unit, progress=False, strict=True
        )
        made = fxprune.report(small)
        assert made.forward == "module"
        assert made.plan.achieved > 0.4
        layers = [m for m in small.modules() if isinstance(m, nn.MultiheadAttention)]
        assert unit == "heads" or any(m.head_dim < 8 for m in layers)
        assert all(c.ok for c in fxprune.verify(net, small, fxprune.trace(net, x, attention=unit), made.plan))
