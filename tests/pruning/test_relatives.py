"""Networks as people write them, halved: own forward, both proofs in both modes, a training step, saved and loaded."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune

NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {}
IMAGE, TOKENS = (lambda: torch.randn(2, 3, 8, 8)), (lambda: torch.randn(2, 5, 8))


def net(inputs: Callable[[], Any]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(cls: type[nn.Module]) -> type[nn.Module]:
        NETS[cls.__name__] = cls, inputs
        return cls

    return register


@net(IMAGE)
class Supervised(nn.Module):
    """Heads for training alone, which read what lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 32, 3), nn.Conv2d(32, 5, 1)
        self.aux = nn.Sequential(nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.a(x).relu()
        y = {"out": self.head(self.b(h).relu())}
        return y | {"aux": self.aux(h)} if self.training else y


@net(TOKENS)
class Recurrent(nn.Module):
    """A recurrent cell in Python whose masks for training are drawn ahead, as many as its width."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.hidden, self.at = hidden, 0
        self.w, self.u, self.o = nn.Linear(8, 2 * hidden), nn.Linear(hidden, 2 * hidden), nn.Linear(hidden, 3)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("start", torch.zeros(1, hidden))
        self.register_buffer("masks", self.drop(torch.ones(20, hidden)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(len(x), self.hidden)
        if self.training:
            if self.at + len(x) > len(self.masks):
                self.at, self.masks = 0, self.drop(torch.ones(20, self.hidden))
            mask = self.masks[self.at : self.at + len(x)]
            self.at += len(x)
        else:
            mask = torch.ones(1)
        for w in self.w(x).unbind(1):
            a, z = (w + self.u(h)).chunk(2, -1)
            h = z.sigmoid() * h + (1 - z.sigmoid()) * a.tanh() * mask
        return self.o(h)


@net(TOKENS)
class Partial(nn.Module):
    """Steps that are closures and partials over submodules, and a scale that numpy makes of a shape."""

    def __init__(self) -> None:
        super().__init__()
        i, q, k, o = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.parts = nn.ModuleList([i, q, k, o])

        def attend(x: Tensor) -> Tensor:
            a, b = q(x), k(x)
            return x + (a @ b.mT / np.sqrt(np.prod(b.shape[-1:]))).softmax(-1) @ x

        self.steps = [functools.partial(lambda f, x: f(x).relu(), i), attend, o.forward]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


@net(lambda: (torch.randn(7, 6), torch.randint(0, 7, (2, 15))))
class GraphAttention(nn.Module):
    """A softmax over the neighbours of every node, a dot product with a vector a head."""

    def __init__(self, heads: int = 4, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.w, self.o = nn.Linear(6, heads * width, bias=False), nn.Linear(heads * width, 3)
        self.a, self.b = (nn.Parameter(torch.randn(1, heads, width)) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.w(x).view(-1, self.heads, self.width)
        weights = ((h * self.a).sum(-1)[edges[0]] + (h * self.b).sum(-1)[edges[1]]).exp()
        total = torch.zeros(len(x), self.heads).index_add(0, edges[1], weights)
        messages = h[edges[0]] * (weights / (total[edges[1]] + 1e-9))[..., None]
        return self.o(torch.zeros_like(h).index_add(0, edges[1], messages).flatten(1))


@net(TOKENS)
class Experts(nn.Module):
    """Tokens routed to the best two of four experts by their values."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.i, self.o, self.gate = nn.Linear(8, width), nn.Linear(width, 3), nn.Linear(width, 4)
        mlp = lambda: nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))  # noqa: E731
        self.experts = nn.ModuleList(mlp() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.i(x).flatten(0, 1)
        weights, chosen = self.gate(h).softmax(-1).topk(2)
        y = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            token, place = torch.where(chosen == k)
            y[token] += weights[token, place, None] * expert(h[token])
        return self.o((h + y).view(*x.shape[:2], -1))


@net(IMAGE)
class Modulated(nn.Module):
    """Statistics of each image given by another path (AdaIN), channels shuffled over groups."""

    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.a, self.g, self.o = nn.Conv2d(3, c, 3), nn.Conv2d(c, c, 3, groups=4), nn.Conv2d(c, 3, 1)
        self.style = nn.Linear(3, 2 * c)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.style(x.mean((2, 3)))[..., None, None].chunk(2, 1)
        h = self.a(x)
        h = (h - h.mean((2, 3), keepdim=True)) / (h.std((2, 3), keepdim=True) + 1e-5) * (1 + scale) + shift
        n, c, *space = h.shape
        return self.o(self.g(h.view(n, 4, c // 4, *space).transpose(1, 2).reshape(n, c, *space)).relu())


@net(IMAGE)
class Gates(nn.Module):
    """ECA, then CBAM."""

    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, c, 3), nn.Conv2d(c, c, 3), nn.Conv2d(c, 3, 1)
        self.near, self.at = nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
        self.mlp = nn.Sequential(nn.Conv2d(c, 8, 1), nn.ReLU(), nn.Conv2d(8, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x * self.near(F.adaptive_avg_pool2d(x, 1).squeeze(-1).mT).mT.unsqueeze(-1).sigmoid()
        x = self.b(x).relu()
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        return self.o(x * self.at(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)).sigmoid())


@net(TOKENS)
class StateSpace(nn.Module):
    """A selective scan: a depthwise convolution over time, gates, a state a channel."""

    def __init__(self, d: int = 16, n: int = 4) -> None:
        super().__init__()
        self.n, self.i, self.o = n, nn.Linear(8, 2 * d), nn.Linear(d, 3)
        self.c, self.x, self.dt = nn.Conv1d(d, d, 3, padding=2, groups=d), nn.Linear(d, 2 + 2 * n), nn.Linear(2, d)
        self.a, self.d = nn.Parameter(torch.randn(d, n)), nn.Parameter(torch.ones(d))

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.i(u).chunk(2, -1)
        x = F.silu(self.c(x.mT)[..., : u.shape[1]].mT)
        dt, b, c = self.x(x).split([2, self.n, self.n], -1)
        dt = F.softplus(self.dt(dt))
        h, ys = x.new_zeros(len(x), x.shape[2], self.n), []
        for t in range(u.shape[1]):
            h = torch.exp(-dt[:, t, :, None] * self.a.exp()) * h + (dt * x)[:, t, :, None] * b[:, t, None]
            ys.append((h * c[:, t, None]).sum(-1))
        return self.o((torch.stack(ys, 1) + x * self.d) * F.silu(z))


@net(TOKENS)
class Windows(nn.Module):
    """Linear attention over heads with softmaxes over features and over places, a scale that math makes."""

    def __init__(self, d: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.i, self.qkv = heads, nn.Linear(8, d), nn.Linear(d, 3 * d)
        self.p, self.o = nn.Linear(d, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        q = q.softmax(-2) * math.pow(x.shape[-1] // self.heads, -0.5)
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
        y = torch.einsum("bhde,bhdn->bhen", context, q)
        return self.o(x + self.p(y.flatten(1, 2).mT))


def tensors(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", sorted(NETS))
def test_halved(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs = NETS[name]
    model, x = make(), inputs()
    x = x if isinstance(x, tuple) else (x,)
    small = fxprune.prune(model, "magnitude", 0.5, example_inputs=x, progress=False, strict=True)
    made = fxprune.report(small)
    assert made.forward == "module"
    assert abs(made.plan.achieved - 0.5) < 0.03
    checks = fxprune.verify(model, small, fxprune.trace(model, x), made.plan)
    assert all(c.ok and not c.note.startswith("nothing") for c in checks)
    again = fxprune.load(fxprune.save(small, tmp_path / "m"), model=make())
    for a, b in zip(tensors(small.eval()(*x)), tensors(again(*x)), strict=True):
        assert torch.equal(a, b)
    torch.stack([t.abs().sum() for t in tensors(small.train()(*x))]).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
