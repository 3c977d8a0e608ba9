"""Heads read off a residual stream by a gate, as in WavLM: the dimensions of heads go, not everything stays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune

HEADS = 4


class Gated(nn.Module):
    """Attention whose position bias is gated by the stream's own heads; the gate's sizes are plain numbers."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v, self.o = (nn.Linear(c, c) for _ in range(4))
        self.gate, self.bias = nn.Linear(c // HEADS, 8), nn.Parameter(torch.randn(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        own = x.view(*x.shape[:-1], self.heads, -1).permute(0, 2, 1, 3)
        gate = self.gate(own).view(*own.shape[:-1], 2, 4).sum(-1).sigmoid().prod(-1, keepdim=True)
        q, k, v = (f(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, gate * self.bias)
        return x + self.o(y.transpose(1, 2).reshape(b, n, c))


class Net(nn.Module):
    def __init__(self, c: int = 32) -> None:
        super().__init__()
        self.first, self.one, self.two, self.last = nn.Linear(6, c), Gated(c), Gated(c), nn.Linear(c, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(self.first(x))))


def test_the_stream_loses_dimensions_of_every_head() -> None:
    graph = fxprune.trace(Net(), torch.randn(2, 7, 6))
    assert len(graph.group("first.weight:0")) == 32 // HEADS


def test_what_plain_numbers_hold_stays_and_the_module_keeps_its_forward() -> None:
    """Whole heads would do as little as the gate: it is the gate alone that is held."""
    small = fxprune.prune(Net(), "random", 0.5, example_inputs=torch.randn(2, 7, 6), progress=False)
    told = fxprune.report(small)
    assert told.forward == "module"
    assert small.one.gate.out_features == 8
    assert small.first.out_features < 32
    assert all(c.ok for c in told.checks)
