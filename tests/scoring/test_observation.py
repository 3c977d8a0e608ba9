"""Which contractions of a forward are seen, wherever their weights are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.scoring.observation import Call, Observer
from fxprune.scoring.score import score


def loss(model: nn.Module, batch: Any) -> Tensor:
    args, kwargs = as_inputs(batch)
    outputs = [x for x in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(x, Tensor)]
    return torch.stack([(x - 0.3).square().mean() for x in outputs if x.is_floating_point()]).sum()


def small() -> tuple[nn.Module, ChannelGraph, list[Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    return net, analyse(net, as_inputs(torch.ones(1, 3))), [torch.randn(4, 3) for _ in range(2)]


def seen(net: nn.Module, *inputs: Tensor) -> list[tuple[str, int, int, int]]:
    calls: list[Call] = []
    with torch.no_grad(), Observer({**dict(net.named_parameters()), **dict(net.named_buffers())}, calls.append):
        net.eval()(*inputs)
    return [(c.weight, c.reads, c.makes, c.start) for c in calls]


class Functional(nn.Module):
    """Weights that no module of their own uses."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.heads, self.pair = (nn.Parameter(torch.randn(s)) for s in [(6, 4), (2, 3, 4), (4, 10)])
        self.register_buffer("fixed", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.fixed
        left = x @ self.pair[:, :4]
        y = torch.einsum("nc,hdc->nhd", left, self.heads).flatten(1)
        return F.linear(x, self.w) + y


def test_weights_are_seen_wherever_they_are_used() -> None:
    assert seen(Functional(), torch.randn(5, 4)) == [
        ("fixed", 0, 1, 0), ("pair", 0, 1, 0), ("heads", 2, -1, 0), ("w", 1, 0, 0)
    ]  # fmt: skip
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert seen(layer, torch.randn(2, 3, 8)) == [
        ("self_attn.in_proj_weight", 1, 0, 0), ("self_attn.out_proj.weight", 1, 0, 0), ("linear1.weight", 1, 0, 0),
        ("linear2.weight", 1, 0, 0),
    ]  # fmt: skip
    assert torch.backends.mha.get_fastpath_enabled()
    convs = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 6, 1, groups=3))
    assert [c[1:3] for c in seen(convs, torch.randn(1, 2, 3, 3))] == [(1, 0), (0, 1), (1, 0)]
    assert seen(nn.Embedding(5, 3), torch.tensor([0, 1])) == [("weight", -1, 1, 0)]


def test_a_part_of_a_weight_knows_its_place() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    cross = seen(layer, x, x + 1, x + 2)
    assert [c for c in cross if c[0] == "in_proj_weight"] == [("in_proj_weight", 1, 0, k) for k in (0, 8, 16)]


def test_autocast_copies_stand_for_their_weights() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert [c[0] for c in seen(net, torch.randn(2, 3))] == ["0.weight", "1.weight"]


def test_an_error_in_a_statistic_is_not_blamed_on_the_loss() -> None:
    net, graph, data = small()

    def visit(call: Call) -> None:
        raise ZeroDivisionError("in the statistic")

    with pytest.raises(ZeroDivisionError, match="in the statistic"):
        score(graph, net, lambda ctx: ctx.observe(visit, "x"), data=data, loss=loss)  # type: ignore[arg-type, return-value]
