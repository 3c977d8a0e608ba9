"""Where memory runs out, a batch is taken in parts: the scores are those of the whole, and nothing counts twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from saved_nets import tiny_unet
from torch import Tensor, nn

import fxprune
from fxprune.errors import CriterionError
from fxprune.graph.channels import ChannelGraph

CAUSES = {
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    "a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: not enough memory: you tried"),
    "Python": MemoryError(),
}


class Limited(torch.autograd.Function):
    """The identity; memory runs out on more than `most` samples, forward or only when gradients come back."""

    most, forwards, cause = 1000, True, CAUSES["Python"]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if Limited.forwards and len(x) > Limited.most:
            raise Limited.cause
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if len(grads[0]) > Limited.most:
            raise Limited.cause
        return grads[0]


class Net(nn.Module):
    """Layers before and after the place where memory runs out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(torch.relu(self.first(x)))
        out: Tensor = self.last(torch.relu(h if torch.compiler.is_compiling() else Limited.apply(h)))
        return out


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def graph(net: Net) -> ChannelGraph:
    return fxprune.trace(net, torch.ones(2, 6))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch + 0 * torch.rand(1))
    return out.square().mean()


DATA = list(torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(1)))


def scored(graph: ChannelGraph, net: Net, criterion: Any, most: int, **given: Any) -> fxprune.Scores:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Limited, "most", most)
        for name, value in given.items():
            patch.setattr(Limited, name, value)
        return fxprune.score(graph, net, criterion, data=DATA, loss=loss)


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("forwards", [True, False], ids=["forward", "backward"])
def test_a_gradient_is_that_of_the_whole(graph: ChannelGraph, net: Net, cause: str, forwards: bool) -> None:
    whole = scored(graph, net, "taylor", 1000)
    parts = scored(graph, net, "taylor", 2, cause=CAUSES[cause], forwards=forwards)
    assert whole.notes == ()
    assert any("smaller parts" in note for note in parts.notes)
    for name, values in whole.values.items():
        assert parts.values[name] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("criterion", ["wanda", "obs", "gradflow"])
def test_other_passes_are_those_of_the_whole(graph: ChannelGraph, net: Net, criterion: str) -> None:
    from fxprune.criteria.gradflow import GradFlow

    chosen = GradFlow(method="finite_difference", eps=1e-2) if criterion == "gradflow" else criterion
    whole, parts = (scored(graph, net, chosen, most) for most in (1000, 2))
    tolerance = 1e-2 if criterion == "gradflow" else 1e-4
    for name, values in whole.values.items():
        assert parts.values[name] == pytest.approx(values, rel=tolerance, abs=tolerance * abs(values).max())


def test_where_not_even_one_sample_fits_the_options_are_named(graph: ChannelGraph, net: Net) -> None:
    with pytest.raises(CriterionError, match=r"1 of 9 samples of batch 0.*gradient checkpointing"):
        scored(graph, net, "taylor", 0)
    assert all(p.grad is None for p in net.parameters())


def test_draws_by_place_are_those_of_the_whole() -> None:
    """The diffusion losses draw noise and times by a sample's place in its batch."""

    unet = tiny_unet()
    graph = fxprune.trace(unet)
    batches, of = fxprune.calibration(unet, 4)
    whole = fxprune.score(graph, unet, "taylor", data=batches, loss=of)

    def limited(model: nn.Module, batch: Any) -> Tensor:
        if len(batch if isinstance(batch, Tensor) else next(iter(batch.values()))) > 1:
            raise torch.OutOfMemoryError
        return of(model, batch)

    parts = fxprune.score(graph, unet, "taylor", data=batches, loss=limited)
    assert any("smaller parts" in note for note in parts.notes)
    for name, values in whole.values.items():
        assert parts.values[name] == pytest.approx(values, rel=1e-3, abs=1e-4 * abs(values).max())
