"""Regions keep their context: autocast inside a forward, inference_mode around it, an autograd.Function in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Cast(nn.Module):
    """autocast around some layers, and off again around one of them."""

    def __init__(self, cast: bool) -> None:
        super().__init__()
        self.cast, self.a, self.b, self.norm = cast, nn.Linear(16, 64), nn.Linear(64, 4), nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = self.norm(self.a(x).relu())
            with torch.autocast("cpu", enabled=False):
                h = h.float() * 2
            y = self.b(h)
        return y.float() if self.cast else y


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * (ctx.saved_tensors[0] > 0)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Any:
        return self.b(Clamp.apply(self.a(x)))


def pruned(model: nn.Module, x: Tensor, **options: Any) -> Any:
    return fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False, **options)


@pytest.mark.parametrize("cast", [True, False])
def test_autocast_inside_a_forward(cast: bool) -> None:
    model, x = Cast(cast), torch.randn(4, 16)
    small = pruned(model, x)
    assert fxprune.report(small).forward == "module"
    assert small.a.out_features < 64
    assert small(x).dtype == model(x).dtype
    small(x).float().sum().backward()


@pytest.mark.parametrize("cast", [True, False])
def test_a_graph_forward_casts_as_the_module_did(cast: bool) -> None:
    model, x = Cast(cast), torch.randn(4, 16)
    graph = fxprune.trace(model, x)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    mine, graphs = (fxprune.rewrite(model, graph, plan, forward=f).model for f in ("module", "graph"))
    assert graphs(x).dtype == mine(x).dtype
    assert torch.equal(graphs(x), mine(x))


def test_a_missed_channel_shows_through_the_wider_tolerance_of_bfloat16() -> None:
    model, x = Cast(True), torch.randn(4, 16)
    graph = fxprune.trace(model, x)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    small = fxprune.rewrite(model, graph, plan).model
    with torch.no_grad():
        small.b.weight.copy_(small.b.weight.roll(1, 1))
    with pytest.raises(fxprune.VerifyError, match="masked = dense"):
        fxprune.verify(model, small, graph, plan)


def test_a_function_with_a_backward_of_its_own() -> None:
    small = pruned(Own(), torch.randn(4, 16))
    assert fxprune.report(small).forward == "module"
    small(torch.randn(3, 16)).sum().backward()


def test_what_is_pruned_inside_inference_mode_can_train() -> None:
    model, x = Own(), torch.randn(4, 16)
    with torch.inference_mode():
        given = torch.randn(4, 16)
        small = pruned(model, given)
        graph = fxprune.trace(model, given)
        own = fxprune.rewrite(model, graph, fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)).model
        again = fxprune.apply(model, fxprune.report(small).plan, example_inputs=given)
    for net in (small, own, again):
        net(x).sum().backward()
        assert net.a.weight.grad is not None


def test_what_is_made_inside_inference_mode_is_named() -> None:
    with torch.inference_mode():
        model = Own()
    with pytest.raises(fxprune.InputsError, match=r"a\.weight was made inside torch\.inference_mode\(\)"):
        pruned(model, torch.randn(4, 16))
