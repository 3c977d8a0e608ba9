"""What is read of weights to score them: each once, and none of them where nobody else's code runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.criteria.magnitude import Magnitude
from fxprune.errors import CriterionError
from fxprune.scoring import preservation
from fxprune.scoring.elementwise import Elementwise
from fxprune.scoring.preservation import _sum
from fxprune.scoring.score import score

X = torch.ones(2, 8)


class Stream(nn.Module):
    """Blocks on a stream: a weight is cut by what it makes, by what it reads, and goes with its block."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)
        self.wide, self.narrow = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(20, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.narrow(self.wide(x).relu()))  # type: ignore[no-any-return]


def traced() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = Stream().eval()
    return net, fxprune.trace(net, torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_every_element_is_read_once(reduce: Any) -> None:
    net, graph = traced()
    assert graph.blocks
    read: list[int] = []

    def square(w: Tensor) -> Tensor:
        read.append(w.numel())
        return w * w

    lazily = score(
        graph, net, lambda ctx: {n: Elementwise(w, square) for n, w in ctx.parameters.items()}, reduce=reduce
    )
    cut = {s.tensor for g in graph.groups for s in g.slices}
    alone = {n for block in graph.blocks for n in block.tensors} - cut
    assert sum(read) == sum(p.numel() for n, p in net.named_parameters() if n in cut | alone)
    at_once = score(graph, net, lambda ctx: {n: w.square() for n, w in ctx.parameters.items()}, reduce=reduce)
    for name, values in at_once.values.items():
        assert lazily.values[name] == pytest.approx(values, rel=1e-5)
    whole = {n: float(p.detach().double().square().sum()) for n, p in net.named_parameters()}
    for block in graph.blocks:
        assert lazily.blocks[block.name] == pytest.approx(sum(whole[n] for n in block.tensors), rel=1e-5)


@pytest.mark.parametrize("reduce", ["max", "l2"])
def test_a_block_has_the_sum_whatever_channels_have(reduce: Any) -> None:
    net, graph = traced()
    found = score(graph, net, lambda ctx: {n: w.abs() for n, w in ctx.parameters.items()}, reduce=reduce)
    whole = {n: float(p.detach().double().abs().sum()) for n, p in net.named_parameters()}
    for block in graph.blocks:
        assert found.blocks[block.name] == pytest.approx(sum(whole[n] for n in block.tensors), rel=1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize(("first", "length"), [(0, 1), (0, 64), (1, 30), (3, 21), (0, 0)])
def test_a_sum_of_bits_tells_any_element(dtype: torch.dtype, first: int, length: int) -> None:
    held = torch.randint(0, 2, (first + length,)).to(dtype)
    view = held[first:]
    before = int(_sum(view))
    for i in range(length):
        was = view[i].clone()
        view[i] = 1 - int(was.real)
        assert int(_sum(view)) != before, i
        view[i] = was
    assert int(_sum(view)) == before


def test_a_sum_of_bits_tells_a_sign_and_takes_what_does_not_lie_in_a_row() -> None:
    zero = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert int(_sum(zero)) != int(_sum(-zero))
    turned = torch.randn(4, 6).t()
    before = int(_sum(turned))
    turned[5, 3] += 1
    assert int(_sum(turned)) != before


def loss(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        next(net.parameters()).data[0, 0] += 1  # has no version
    return net(x).square().mean()  # type: ignore[no-any-return]


def test_a_loss_that_writes_into_weights_is_told_though_the_criterion_is_ours() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(CriterionError, match=r"0.weight was written to in place"):
        score(fxprune.trace(net, X), net, "wanda", data=[X], loss=loss)


def test_weights_are_compared_only_where_others_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = fxprune.trace(net, X)
    seen: list[int] = []

    def seeing(tensor: Tensor) -> Tensor:
        seen.append(tensor.numel())
        return _sum(tensor)

    monkeypatch.setattr(preservation, "_sum", seeing)
    score(graph, net, "magnitude")
    assert not seen
    score(graph, net, lambda ctx: Magnitude()(ctx))
    assert sum(seen) == 2 * sum(p.numel() for p in net.parameters())
