"""Scales that the forward computes from a width: the module keeps its forward, the function keeps its scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune

SIDE = 5


class Attention(nn.Module):
    """Over the places of an image; subclasses weigh."""

    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        return x + self.o((v @ self.weights(q, k).softmax(-1).mT).unflatten(2, x.shape[2:]))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        raise NotImplementedError


class Int(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.bmm(q.mT, k) * (int(q.shape[1]) ** (-0.5))


class Numpy(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("ncq,nck->nqk", q.to(torch.float32), (k / np.sqrt(k.shape[1])).to(torch.float32))


class Product(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return q.mT @ k / math.sqrt(np.prod(k.shape[1:2]))


class Quarter(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scale = 1 / math.sqrt(math.sqrt(q.shape[1]))
        return torch.einsum("bct,bcs->bts", q * scale, k * scale)


class Alpha(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        empty = torch.empty(len(q), q.shape[2], k.shape[2])
        return torch.baddbmm(empty, q.mT, k, beta=0, alpha=float(q.shape[1]) ** -0.5)


class Constant(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return q.mT @ k / torch.sqrt(torch.tensor(float(k.shape[1])))


class Listed(Attention):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return q.mT @ k * len(torch.arange(q.shape[1]).tolist()) ** -0.5


class Normed(Attention):
    """Queries and keys through a norm: the factor goes into its scale and shift."""

    def __init__(self, c: int = 24) -> None:
        super().__init__(c)
        self.n, self.m = nn.LayerNorm(c), nn.LayerNorm(c)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return self.n(q.mT) @ self.m(k.mT).mT * int(q.shape[1]) ** -0.5


class Fused(nn.Module):
    """One layer makes query, key and value, a head of its own size each; the scale is of the head's size."""

    def __init__(self, c: int = 24, heads: int = 1) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[0] * self.heads, x.shape[1] // self.heads, 3, -1
        q, k, v = self.qkv(x).reshape(*shape).unbind(2)
        w = torch.einsum("ncq,nck->nqk", q, k / np.sqrt(k.shape[1])).softmax(2)
        return self.proj(torch.einsum("nqk,nck->ncq", w, v).reshape(*x.shape)) + x


class Implicit(Attention):
    """scaled_dot_product_attention divides by sqrt(d) by itself, behind convolutions and a rotation."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2).mT for f in (self.q, self.k, self.v))
        turned = [torch.stack([t[..., ::2] - t[..., 1::2], t[..., ::2] + t[..., 1::2]], -1).flatten(-2) for t in (q, k)]
        return x + self.o(F.scaled_dot_product_attention(*turned, v).mT.reshape_as(x))


def net_of(mid: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 24, 1), mid, nn.Conv2d(24, 3, 1))
    with torch.no_grad():  # sharp enough for another temperature to be seen
        for p in mid.parameters():
            p.mul_(4)
    return net


KINDS: list[Any] = [Int, Numpy, Product, Quarter, Alpha, Constant, Listed, Normed, Fused, Implicit]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_scale_is_kept(kind: type[nn.Module], tmp_path: Path) -> None:
    net, x = net_of(kind()), torch.randn(2, 3, SIDE, SIDE)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False, strict=True)
    told = fxprune.report(small)
    assert told.forward == "module"
    assert told.checks[0].ok
    assert small[1].state_dict()["qkv.weight" if kind is Fused else "q.weight"].shape[0] < 24 * (
        1 + 2 * (kind is Fused)
    )
    again = fxprune.load(fxprune.save(small, tmp_path / "m"), model=net)
    assert torch.equal(again(x), small.eval()(x))


def test_without_proof_the_scale_is_kept_all_the_same() -> None:
    net, x = net_of(Int()), torch.randn(2, 3, SIDE, SIDE)
    proved, unproved = (
        fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False, verify=v).eval()(x)
        for v in (True, False)
    )
    assert torch.equal(proved, unproved)


class Unfoldable(Attention):
    """The query is a unit vector: no weight scales it."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return F.normalize(q, dim=1).mT @ F.normalize(k, dim=1) * int(q.shape[1]) ** 0.5


def test_what_no_weight_can_undo_is_held_with_exact_norms() -> None:
    net, x = net_of(Unfoldable()), torch.randn(2, 3, SIDE, SIDE)
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=x, progress=False, exact_norms=True)
    told = fxprune.report(small)
    assert told.forward == "module"
    assert small[1].q.weight.shape[0] == small[1].k.weight.shape[0] == 24
    assert any("cannot follow" in where for cause in told.held for where in cause.examples)


@pytest.mark.parametrize("kind", [Int, Unfoldable], ids=lambda k: k.__name__)
def test_scales_of_what_is_left_are_kept_where_blocks_go(kind: type[nn.Module]) -> None:
    """Without a proof, too, and at the first try: the numbers are compared with those of the blocks that stay."""
    net, x = net_of(nn.Sequential(*(kind() for _ in range(4)))), torch.randn(2, 3, SIDE, SIDE)
    how: dict[str, Any] = {"granularity": "both", "example_inputs": x, "progress": False}
    proved, unproved = (fxprune.prune(net, "magnitude", 0.6, verify=v, **how) for v in (True, False))
    told = fxprune.report(unproved)
    assert told.forward == "module"
    assert told.plan.blocks
    assert told.plan.removed == fxprune.report(proved).plan.removed
    assert any(told.plan.removed.values())
    assert torch.allclose(proved.eval()(x), unproved.eval()(x), rtol=1e-3, atol=1e-4)
    assert all(check.ok for check in fxprune.verify(net, unproved, fxprune.trace(net, x), told.plan))


class Scaled(nn.Module):
    """A weight divided by the root of its fan-in, which is asked of one of its rows."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight / math.sqrt(self.weight[0].numel())).t()


def test_a_row_that_is_asked_for_its_size_freezes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Scaled(8, 24), nn.ReLU(), Scaled(24, 24), nn.ReLU(), Scaled(24, 4))
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=torch.randn(2, 8), progress=False, strict=True)
    assert small[2].weight.shape[0] < 24 > small[2].weight.shape[1]
