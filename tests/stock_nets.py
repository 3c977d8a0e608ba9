"""Small nets with constructors, for stock shapes: an encoder, and nets whose constructors mislead."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """Attention by whole heads and a feed-forward part, each added to the stream."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, int(width * ratio)), nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Layers between an embedding and a classifier; `width` must be a multiple of `heads`."""

    def __init__(self, width: int = 32, heads: int = 4, ratio: float = 4.0, layers: int = 3, classes: int = 5) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")
        self.embed = nn.Linear(6, width)
        self.layers = nn.ModuleList([Layer(width, heads, ratio) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x.mean(1)))


class Located(nn.Module):
    """Adds a table of sines of the stream's width, which is computed anew by each constructor and not saved."""

    def __init__(self, width: int = 32, hidden: int = 16) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Linear(6, width), nn.Linear(width, hidden), nn.Linear(hidden, 3)
        rates = torch.exp(-math.log(1000.0) * torch.arange(width // 2) / (width // 2))
        angles = torch.arange(1, 8)[:, None] * rates
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.up(self.embed(x) + self.table)))


class Shifted(nn.Module):
    """Its shapes follow `hidden`, and so does a number that it adds: narrower ones compute something else."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.up, self.down, self.shift = nn.Linear(6, hidden), nn.Linear(hidden, 3), hidden / 4
        self.side, self.back = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return torch.sin(self.down(F.relu(self.up(x))) + self.shift) + self.back(F.relu(self.side(x)))


TOKENS = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
