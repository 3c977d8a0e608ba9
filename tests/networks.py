"""Random networks for property tests: blocks that exercise couplings, chained as a list of names says.

`build(names, seed)` gives a module and example inputs.  Image blocks map (B, C, H, W) to (B, C', H, W), token blocks
(B, N, C) to (B, N, C').  Every block is a few lines of what real networks do.  FXPRUNE_EXAMPLES sets how many of
`NETWORKS` a law is tried on.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import odd_blocks
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

SIDE = 6


class Conv(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = r.choice([8, 12, 16])
        self.conv = nn.Conv2d(c, self.out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


class Residual(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, mid = c, r.choice([6, 10])
        self.norm = nn.GroupNorm(r.choice([g for g in (1, 2, 4) if c % g == 0]), c)
        self.a, self.b = nn.Conv2d(c, mid, 1), nn.Conv2d(mid, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(self.norm(x))))


class CatSkip(nn.Module):
    """A group norm over a concatenation."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = 12
        self.a = nn.Conv2d(c, 8, 1)
        self.norm = nn.GroupNorm(r.choice([g for g in (1, 2, 4) if (c + 8) % g == 0]), c + 8)
        self.b = nn.Conv2d(c + 8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(torch.cat([x, self.a(x)], 1))))


class Batch(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = c
        self.norm = nn.BatchNorm2d(c)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(x))


class Depthwise(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = c * r.choice([1, 2])
        self.conv = nn.Conv2d(c, self.out, 3, padding=1, groups=c)
        self.mix = nn.Conv2d(self.out, self.out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.relu(self.conv(x)))


class Grouped(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = 8
        groups = r.choice([g for g in (2, 4) if c % g == 0] or [1])
        self.conv = nn.Conv2d(c, 8, 1, groups=groups)
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.tanh(self.conv(x)))


class Shuffle(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, self.g = c, 2 if c % 2 == 0 else 1
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, self.g, c // self.g, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.conv(x)


class Squeeze(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = c
        self.down, self.up = nn.Linear(c, 4), nn.Linear(4, c)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(x.mean((2, 3)))))
        return x * torch.sigmoid(gate)[:, :, None, None]


class Glu(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = r.choice([6, 8])
        self.conv = nn.Conv2d(c, 2 * self.out, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return a * torch.sigmoid(b)


class Mlp(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, mid = c, r.choice([12, 20])
        self.norm = nn.LayerNorm(c)
        self.a, self.b = nn.Linear(c, mid), nn.Linear(mid, c)
        self.scale = nn.Parameter(torch.rand(c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.b(F.gelu(self.a(self.norm(x))))


class Attention(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, self.heads, self.dim = c, r.choice([2, 3]), 4
        width = self.heads * self.dim
        self.qkv, self.proj = nn.Linear(c, 3 * width), nn.Linear(width, c)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.dim))


class StreamAttention(nn.Module):
    """head_dim is read off the residual stream, as many vision transformers do."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, self.heads = c, 2 if c % 2 == 0 else 1
        self.q, self.k, self.v, self.proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (f(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (torch.matmul(q, k.transpose(-1, -2)) * 0.3).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c))


class Grouping(nn.Module):
    """Grouped queries with a rotary table."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out, self.h, self.kv, self.d = c, 4, 2, 4
        self.q, self.k, self.v = nn.Linear(c, 16), nn.Linear(c, 8), nn.Linear(c, 8)
        self.proj = nn.Linear(16, c)
        self.register_buffer("table", torch.randn(SIDE * SIDE, 4))

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.table.cos() + torch.cat([-b, a], -1) * self.table.sin()

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.rotate(self.q(x).view(b, n, self.h, self.d).transpose(1, 2))
        k = self.rotate(self.k(x).view(b, n, self.kv, self.d).transpose(1, 2))
        v = self.v(x).view(b, n, self.kv, self.d).transpose(1, 2)
        rep = self.h // self.kv
        k = k[:, :, None].expand(b, k.shape[1], rep, n, self.d).reshape(b, -1, n, self.d)
        v = v.repeat_interleave(rep, 1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).flatten(2))


class Rms(nn.Module):
    """An RMS norm written by hand."""

    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = 10
        self.weight = nn.Parameter(torch.rand(c) + 0.5)
        self.lin = nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))


class Position(nn.Module):
    def __init__(self, c: int, r: random.Random) -> None:
        super().__init__()
        self.out = c
        self.embed = nn.Parameter(torch.randn(1, SIDE * SIDE, c))
        self.mean = nn.Parameter(torch.randn(1, 1, c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.embed + self.mean.expand(x.shape[0], -1, -1)


IMAGE: dict[str, Callable[[int, random.Random], nn.Module]] = {
    k.__name__: k for k in (Conv, Residual, CatSkip, Batch, Depthwise, Grouped, Shuffle, Squeeze, Glu)
} | odd_blocks.IMAGE
TOKEN: dict[str, Callable[[int, random.Random], nn.Module]] = {
    k.__name__: k for k in (Mlp, Attention, StreamAttention, Grouping, Rms, Position)
} | odd_blocks.TOKEN


class Net(nn.Module):
    """Image blocks, then token blocks, between a stem and a head."""

    def __init__(self, image: list[str], token: list[str], seed: int) -> None:
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 1)
        width, image_blocks, token_blocks = 8, [], []
        for name in image:
            image_blocks.append(IMAGE[name](width, r))
            width = image_blocks[-1].out
        self.embed = nn.Linear(width, 12)
        width = 12
        for name in token:
            token_blocks.append(TOKEN[name](width, r))
            width = token_blocks[-1].out
        self.image, self.token = nn.Sequential(*image_blocks), nn.Sequential(*token_blocks)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.image(self.stem(x))
        x = self.embed(x.flatten(2).transpose(1, 2))
        return self.head(self.token(x))


def build(image: list[str], token: list[str], seed: int) -> tuple[nn.Module, tuple[Tensor]]:
    """A random network in eval mode and its example inputs."""
    net = Net(image, token, seed).eval()
    return net, (torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)),)


NETWORKS = st.tuples(
    st.lists(st.sampled_from(sorted(IMAGE)), max_size=4),
    st.lists(st.sampled_from(sorted(TOKEN)), max_size=3),
    st.integers(0, 2**16),
)
SETTINGS = settings(max_examples=int(os.environ.get("FXPRUNE_EXAMPLES", "25")))


class Heads(nn.Module):
    """An attention on a residual stream, its number of heads and their size in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, 8
        self.i, self.o, self.proj = nn.Linear(6, 32), nn.Linear(32, 3), nn.Linear(32, 32)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = (f(x).view(*x.shape[:2], self.heads, self.dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(x + self.proj(y.transpose(1, 2).flatten(2)))
