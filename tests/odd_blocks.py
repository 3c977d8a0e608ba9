"""More blocks for `networks`: code beside the traced path, and ops that mix positions or channels.

Image blocks map (B, C, H, W) to (B, C', H, W), token blocks (B, N, C) to (B, N, C'); each takes its width and a source
of random numbers, and says in `out` how wide its output is.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TrainBranch(nn.Module):
    """A branch that is there in train mode alone."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = r.choice([8, 10])
        self.conv, self.aux = nn.Conv2d(c, self.out, 1), nn.Conv2d(c, self.out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y + 0.1 * self.aux(x) if self.training else y)


class TrainMask(nn.Module):
    """A scale as wide as its layer, and a dropout, that train mode alone reads."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = 12
        self.conv, self.drop = nn.Conv2d(c, 12, 1), nn.Dropout2d(0.2)
        self.register_buffer("mask", torch.rand(1, 12, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.training:
            y = y * self.mask
        return self.drop(torch.tanh(y))


class Autocast(nn.Module):
    """A region in bfloat16 inside forward."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, mid = c, r.choice([8, 12])
        self.a, self.b = nn.Conv2d(c, mid, 1), nn.Conv2d(mid, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.b(F.silu(self.a(x)))
        return x + y.float()


class ShapeScale(nn.Module):
    """Attention over positions whose scale is made of a shape, by Python, by numpy or by a weight's size."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, self.way = c, r.choice(["power", "numpy", "weight"])
        mid = r.choice([8, 12])
        self.q, self.k, self.v = (nn.Conv2d(c, mid, 1) for _ in range(3))
        self.proj = nn.Conv2d(mid, c, 1)

    def scale(self, q: Tensor) -> float:
        if self.way == "power":
            return int(q.shape[1]) ** -0.5
        return float(1 / np.sqrt(q.shape[1])) if self.way == "numpy" else self.q.weight.size(0) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(torch.bmm(q.transpose(1, 2), k) * self.scale(q), -1)
        y = torch.bmm(v, weights.transpose(1, 2))
        return x + self.proj(y.reshape(b, y.shape[1], h, w))


class SpatialGate(nn.Module):
    """Mean and maximum over channels, as in CBAM."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = c
        self.conv, self.gate = nn.Conv2d(c, c, 1), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.gate(both))


class ChannelConv(nn.Module):
    """A convolution along the channels, as in ECA."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = c
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None])[:, 0]
        return x * torch.sigmoid(gate)[:, :, None, None]


class Closure(nn.Module):
    """A forward that is a closure over its modules."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = r.choice([8, 12])
        self.conv, self.act = nn.Conv2d(c, self.out, 1), nn.SiLU()
        conv, act = self.conv, self.act

        def forward(x: Tensor) -> Tensor:
            return act(conv(x))

        self.forward = forward


class Reparametrized(nn.Module):
    """A weight that is computed from others."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, mid = c, r.choice([8, 12])
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(c, mid, 1))
        self.b = nn.Conv2d(mid, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x)))


class IndexAdd(nn.Module):
    """Messages along edges, added up at their nodes."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = r.choice([8, 12])
        self.a, self.b = nn.Linear(c, 16), nn.Linear(16, self.out)
        self.register_buffer("begin", torch.randint(0, 36, (50,)))
        self.register_buffer("end", torch.randint(0, 36, (50,)))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.b(torch.zeros_like(h).index_add(1, self.end, h[:, self.begin]) + h)


class ScatterAdd(IndexAdd):
    """The same with an index of all axes, as torch_geometric writes it."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        index = self.end[None, :, None].expand(h.shape[0], -1, h.shape[2])
        return self.b(torch.zeros_like(h).scatter_add(1, index, h[:, self.begin]))


class Strongest(nn.Module):
    """The largest channel of each position as a scale, and a mean over channels taken off."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = 10
        self.a, self.b = nn.Linear(c, 14), nn.Linear(14, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b((h - h.mean(-1, keepdim=True)) / (1 + h.abs().amax(-1, keepdim=True)))


class Dot(nn.Module):
    """A similarity of two layers: products summed over channels."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = c
        self.q, self.k = nn.Linear(c, 12), nn.Linear(c, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid((self.q(x) * self.k(x)).sum(-1, keepdim=True))


class TrainTokens(nn.Module):
    """Another size in train mode: half of the hidden channels are scaled there."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, self.width = c, r.choice([12, 16])
        self.a, self.b = nn.Linear(c, self.width), nn.Linear(self.width, c)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.a(x))
        if self.training:
            scale = torch.ones(self.width)
            scale[: self.width // 2] = 0.9
            h = h * scale
        return x + self.b(h)


Block = Callable[[int, random.Random], nn.Module]
IMAGE: dict[str, Block] = {
    k.__name__: k
    for k in (TrainBranch, TrainMask, Autocast, ShapeScale, SpatialGate, ChannelConv, Closure, Reparametrized)
}
TOKEN: dict[str, Block] = {k.__name__: k for k in (IndexAdd, ScatterAdd, Strongest, Dot, TrainTokens)}
