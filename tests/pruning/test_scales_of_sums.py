"""A scale read from the stream, over layers written as product plus bias: undone in these two, not in their input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


class Nin(nn.Module):
    """A 1x1 layer as score_sde writes it: einsum, then a bias."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(c, c) / c**0.5), nn.Parameter(torch.randn(c) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return (torch.einsum("bhwc,cd->bhwd", x.permute(0, 2, 3, 1), self.W) + self.b).permute(0, 3, 1, 2)


class Net(nn.Module):
    """One attention on a residual stream; the norm before it is read by queries, keys and values alike."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, c, 3, padding=1), nn.GroupNorm(4, c), nn.Conv2d(c, 3, 1)
        self.q, self.k, self.v, self.o = (Nin(c) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        weight = torch.einsum("bchw,bcij->bhwij", q, k) * (int(c) ** -0.5)
        weight = weight.reshape(b, h, w, h * w).softmax(-1).reshape(b, h, w, h, w)
        return self.last(x + self.o(torch.einsum("bhwij,bcij->bchw", weight, v)))


def test_the_stream_is_pruned_and_the_scale_stays() -> None:
    net = Net()
    small = fxprune.prune(net, "magnitude", 0.5, example_inputs=torch.randn(2, 3, 5, 5), progress=False)
    told = fxprune.report(small)
    assert told.forward == "module"
    assert len(small.norm.weight) < 16
    assert not [c for c in told.held if c.name == "the module's Python"]
    assert all(c.ok for c in told.checks)
