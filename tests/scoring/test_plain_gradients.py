"""What is summed the moment it exists is what plain autograd gives: gradients, their squares, and H g."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.criteria.diff_pruning import DiffPruning
from fxprune.criteria.fisher import Fisher
from fxprune.criteria.gradflow import GradFlow
from fxprune.criteria.snip import Snip
from fxprune.criteria.taylor import Taylor
from fxprune.scoring import storage


class Net(nn.Module):
    """Convolutions, a norm, a residual branch, a weight that is used twice, and checkpoints of either kind."""

    def __init__(self) -> None:
        super().__init__()
        self.way = "plain"
        self.enter, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(2, 16)
        self.one, self.two = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def branch(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.enter(x)))
        for _ in range(2):
            if self.way == "plain":
                x = x + self.branch(x)
            else:
                x = x + checkpoint(self.branch, x, use_reentrant=self.way == "reentrant")
        return self.head(x.mean((2, 3)))


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64), torch.randint(
        5, (3,), generator=generator
    )


SHARE = 0.8  # of the largest loss
DATA = [drawn(0), drawn(1)]
SAMPLES = [(x[k : k + 1], y[k : k + 1]) for x, y in DATA for k in range(3)]


def gradients(net: nn.Module, batches: list[tuple[Tensor, Tensor]], *, graph: bool = False) -> list[Tensor]:
    mean = torch.stack([loss(net, b) for b in batches]).mean()
    return list(torch.autograd.grad(mean, list(net.parameters()), create_graph=graph))


def taylor(net: nn.Module) -> list[Tensor]:
    return [(p * g).abs() for p, g in zip(net.parameters(), gradients(net, DATA), strict=True)]


def snip(net: nn.Module) -> list[Tensor]:
    found = taylor(net)
    total = torch.stack([f.sum() for f in found]).sum()
    return [f / total for f in found]


def fisher(net: nn.Module) -> list[Tensor]:
    own = [gradients(net, [s]) for s in SAMPLES]
    squares = [torch.stack(g).square().mean(0) for g in zip(*own, strict=True)]
    return [p.square() * s / 2 for p, s in zip(net.parameters(), squares, strict=True)]


def diff_pruning(net: nn.Module) -> list[Tensor]:
    losses = torch.stack([loss(net, s) for s in SAMPLES])
    counted = [s for s, keep in zip(SAMPLES, losses / losses.max() > SHARE, strict=True) if keep]
    assert 0 < len(counted) < len(SAMPLES)  # the threshold tells some from others
    return [(p * g).abs() for p, g in zip(net.parameters(), gradients(net, counted), strict=True)]


def gradflow(net: nn.Module) -> list[Tensor]:
    parameters = list(net.parameters())
    g = gradients(net, DATA, graph=True)
    fixed = [x.detach() for x in g]
    h = torch.autograd.grad(sum((a * b).sum() for a, b in zip(g, fixed, strict=True)), parameters)
    step = sum(float(x.square().sum()) for x in fixed) / abs(
        sum(float((a * b).sum()) for a, b in zip(fixed, h, strict=True))
    )
    unit = math.prod(float(torch.cat([x.flatten() for x in many]).norm()) for many in (parameters, fixed))
    effects = [(p * a).abs() + 0.4 * step * (p * b).abs() for p, a, b in zip(parameters, fixed, h, strict=True)]
    return [unit * (e / unit) ** 1.25 for e in effects]


CASES: dict[str, tuple[Any, Callable[[nn.Module], list[Tensor]]]] = {
    "taylor": (Taylor(), taylor),
    "snip": (Snip(), snip),
    "fisher": (Fisher(), fisher),
    "diff_pruning": (DiffPruning(threshold=SHARE), diff_pruning),
    "gradflow": (GradFlow(), gradflow),
}


@pytest.mark.parametrize("large", [storage.LARGE, 0], ids=["in memory", "in a file"])
@pytest.mark.parametrize("way", ["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_plain_autograd(name: str, way: str, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGE", large)
    criterion, plain = CASES[name]
    torch.manual_seed(0)
    net = Net().double()
    graph = fxprune.trace(net, DATA[0][0])
    truth = dict(zip(dict(net.named_parameters()), plain(net), strict=True))
    expected = fxprune.score(graph, net, lambda context: truth, reduce="sum")
    net.way = way
    found = fxprune.score(graph, net, criterion, data=DATA, loss=loss)
    # A reentrant checkpoint has no second derivative, and sums in a file leave no memory for it: finite differences.
    within = 1e-4 if name == "gradflow" and (way == "reentrant" or not large) else 1e-9
    assert found.values.keys() == expected.values.keys()
    for group, values in expected.values.items():
        torch.testing.assert_close(found.values[group], values, rtol=within, atol=0)
