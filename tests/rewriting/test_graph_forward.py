"""The rewritten graph as a forward: when it is chosen, and that it takes other batches and lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from couplings import random_scores
from torch import Tensor, nn

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.planning.planner import plan
from fxprune.rewriting.rewrite import rewrite
from fxprune.verification import check_dense, check_permutation


class Coupled(nn.Module):
    """The attention's inner width is viewed as the width of the input, which stays: so does all that is worth much."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.o = 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.o(y.transpose(1, 2).reshape(b, n, c))


def test_a_budget_out_of_the_modules_reach_goes_to_the_graph() -> None:
    given = Coupled().eval()
    x = torch.randn(1, 5, 16)
    with pytest.raises(fxprune.BudgetError):
        fxprune.prune(given, "magnitude", 0.5, example_inputs=x, strict=True, progress=False)
    small = fxprune.prune(given, "magnitude", 0.5, example_inputs=x, progress=False)
    told = fxprune.report(small)
    assert told.forward == "graph"
    assert "sizes that couple axes" in told.reason
    assert small.o.weight.shape == (16, 8)
    for shape in ((1, 5, 16), (3, 5, 16), (2, 9, 16)):
        other = torch.randn(shape)
        assert small(other).shape == shape
        alone = torch.cat([small(row[None]) for row in other])
        torch.testing.assert_close(small(other), alone)
    with pytest.raises(fxprune.BudgetError, match="nothing in this Coupled"):
        fxprune.prune(given, "magnitude", 0.95, example_inputs=x, progress=False)


class Sizes(nn.Module):
    """Numbers from sizes of all kinds: a count of elements, a half, a border, a fill, a repetition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.token = nn.Linear(6, 12), nn.Linear(12, 4), nn.Parameter(torch.randn(1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = torch.cat([self.token.expand(b, -1, -1), F.relu(self.a(x))], 1)
        y = y + torch.zeros(b, n + 1, 1) + torch.arange(n + 1).view(1, n + 1, 1)
        y = y[:, -(-n // 2) :].reshape(b * (n + 1 - -(-n // 2)), 12)
        y = y.view(y.numel() // 12 // b, b, 12).transpose(0, 1).repeat(1, n, 1)
        return self.b(F.interpolate(y.transpose(1, 2), size=n * 2).transpose(1, 2))


@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 4, 6), (3, 7, 6), (2, 2, 6)])
def test_sizes_are_computed_again(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, inputs = Sizes().eval(), as_inputs(torch.randn(1, 4, 6))
    graph = analyse(model, inputs)
    planned = plan(graph, {g.name: torch.rand(len(g)).numpy() for g in graph.groups}, 0.4)
    small = rewrite(model, graph, planned, forward="graph").model
    assert check_dense(model, small, graph, planned).ok
    x = torch.randn(shape)
    assert small(x).shape == model(x).shape
    nothing = plan(graph, {g.name: torch.rand(len(g)).numpy() for g in graph.groups}, 0.0)
    whole = rewrite(model, graph, nothing, forward="graph").model
    torch.testing.assert_close(whole(x), model(x))


class Pieces(nn.Module):
    """Equal pieces, cut by one number."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b, self.c = 8, nn.Linear(6, 24), nn.Linear(8, 8), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = torch.split(F.relu(self.a(x)), self.width, -1)
        return self.c(torch.cat([one, F.relu(self.b(two)), three], -1))


class Pooler(nn.Module):
    """The size of a head is that of an input over the number of heads: if it has to stay, so does that number."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.a, self.o = 4, nn.Linear(16, 16), nn.Linear(16, 8)
        self.wide, self.out = nn.Linear(8, 64), nn.Linear(64, 2)
        with torch.no_grad():  # a head that asks to go
            self.a.weight[:4] /= 100
            self.o.weight[:, :4] /= 100

    def forward(self, x: Tensor) -> Tensor:
        q = self.a(x).unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        return self.out(F.relu(self.wide(self.o(y))))


@pytest.mark.parametrize("make", [Pieces, Pooler])
def test_the_module_itself_follows(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 5, 6 if make is Pieces else 16)
    assert check_permutation(model, analyse(model, as_inputs(x))).ok
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False)
    assert fxprune.report(small).forward == "module"
    if make is Pieces:
        assert small.width == small.b.in_features < 8
    else:
        assert small.heads == 4


def test_a_graph_forward_repeats_for_any_batch() -> None:
    """`repeat_interleave` carries a hint of its output's size, which is the traced batch's."""

    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            times = torch.full((x.shape[0],), 2)
            h = torch.relu(self.a(x))
            return self.b(torch.repeat_interleave(h, times, dim=0, output_size=2 * x.shape[0]))

    model, inputs = Repeating().eval(), as_inputs(torch.randn(2, 4))
    graph = analyse(model, inputs)
    planned = plan(graph, random_scores(graph), 0.3)
    small = rewrite(model, graph, planned, forward="graph").model
    assert check_dense(model, small, graph, planned).ok
    assert small(torch.randn(3, 4)).shape == (6, 3)
