"""Masks on the live model: the same as on the graph, free at one, gone without a trace."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from couplings import CASES
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.masking.comparison import outputs, relative_error
from fxprune.masking.live import LiveMasks
from fxprune.masking.masked_run import run_masked


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def random_mask(graph: fxprune.ChannelGraph, binary: bool = False) -> np.ndarray:
    rng = np.random.default_rng(1)
    mask = np.ones(int(graph.component.max()) + 1)
    for g in graph.groups:
        mask[g.components] = rng.random(len(g)) < 0.6 if binary else rng.uniform(0.2, 1, len(g))
    return mask


def gradients(model: nn.Module, inputs: tuple) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    outputs_ = model(*inputs)
    outputs_ = outputs_.sample if hasattr(outputs_, "sample") else outputs_
    outputs_.square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(CASES))
def test_live_is_the_graph(name: str) -> None:
    """On every net of the table, masked readers in the module's own Python do what they do on the graph."""
    torch.manual_seed(0)
    cls, inputs, _ = CASES[name]
    model = cls().eval()
    graph = analyse(model, as_inputs(inputs()))
    masks = LiveMasks(model, graph)
    assert not masks.held
    keep = random_mask(graph, binary=True)
    masks.set(keep)
    live = outputs(model, graph.traced.example)
    assert relative_error(live, run_masked(graph, model, graph.traced.example, keep > 0)) < 1e-4
    masks.detach()
    plain = outputs(model, graph.traced.example)
    assert relative_error(live, plain) > 1e-3  # the masks did something, and are gone


def test_ones_are_free_and_detaching_leaves_no_trace() -> None:
    model = unet().train()
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([3, 9]))
    before, classes = gradients(model, inputs), [type(m) for m in model.modules()]
    names = list(model.state_dict())
    masks = LiveMasks(model, fxprune.trace(model))
    assert list(model.state_dict()) == names
    assert all(isinstance(m, c) for m, c in zip(model.modules(), classes, strict=True))
    after = gradients(model, inputs)
    assert all(torch.equal(before[n], after[n]) for n in before)
    masks.set(random_mask(masks.graph))
    assert not all(torch.equal(before[n], g) for n, g in gradients(model, inputs).items())
    masks.detach()
    assert [type(m) for m in model.modules()] == classes
    assert not any("_fxprune" in vars(m) for m in model.modules())
    assert all(torch.equal(before[n], g) for n, g in gradients(model, inputs).items())


def test_masks_cannot_be_stacked() -> None:
    model = unet()
    graph = fxprune.trace(model)
    LiveMasks(model, graph, check=False)
    with pytest.raises(fxprune.InputsError, match="carries masks already"):
        LiveMasks(model, graph)


def test_gradient_checkpointing_sees_the_masks_again() -> None:
    """The recomputed forward in the backward pass must be the masked one."""
    model = unet().train()
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([3, 9]))
    masks = LiveMasks(model, fxprune.trace(model))
    masks.set(random_mask(masks.graph))
    plain = gradients(model, inputs)
    model.enable_gradient_checkpointing()
    again = gradients(model, inputs)
    assert all(torch.allclose(plain[n], again[n], atol=1e-7) for n in plain)


def test_calls_are_masked_again_in_a_recomputed_region() -> None:
    model = CASES["Normalised"][0]()
    x = CASES["Normalised"][1]()
    masks = LiveMasks(model, analyse(model.eval(), as_inputs(x)))
    masks.set(random_mask(masks.graph))
    plain = gradients(model, (x,))
    again = gradients(lambda_module(model), (x,))
    assert all(torch.allclose(plain[n], again[f"net.{n}"], atol=1e-7) for n in plain)


class lambda_module(nn.Module):
    """A net run under a checkpoint."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=False)


def test_autocast() -> None:
    model = unet().train()
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([3, 9]))
    masks = LiveMasks(model, fxprune.trace(model))
    masks.set(random_mask(masks.graph))
    exact = model(*inputs).sample
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*inputs).sample
    assert relative_error([rough.float()], [exact]) < 0.1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compile() -> None:
    """One compiled forward follows the masks as they move, without a compilation each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 8, 3), nn.Flatten(1))
    x = torch.randn(2, 3, 8, 8)
    masks = LiveMasks(model, fxprune.trace(model, x))
    counted: list[int] = []

    def backend(module: torch.fx.GraphModule, example: list[Tensor]) -> object:
        counted.append(1)
        return module.forward

    compiled = torch.compile(model, backend=backend)
    for k in range(4):
        mask = random_mask(masks.graph) ** k
        masks.set(mask)
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert sum(counted) <= 2  # all ones, and anything else
    torch._dynamo.reset()


def test_straight_through_gradients_reach_dead_channels() -> None:
    """A masked reader's own gradient is what it would do if the channel came back."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
    x = torch.randn(4, 2)
    masks = LiveMasks(net, fxprune.trace(net, x))
    mask = np.ones(int(masks.graph.component.max()) + 1)
    mask[masks.graph.groups[0].components[1]] = 0
    masks.set(mask)
    dead = gradients(net, (x,))["1.weight"][0]
    with masks.straight_through():
        seen = gradients(net, (x,))["1.weight"][0]
    assert dead[1] == 0
    assert seen[1] != 0
    assert torch.allclose(dead[[0, 2]], seen[[0, 2]])


def test_copies_carry_their_own_masks() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    x = torch.randn(4, 2)
    masks = LiveMasks(net, fxprune.trace(net, x))
    masks.set(random_mask(masks.graph))
    twin = copy.deepcopy(net)
    want = net(x)
    masks.detach()
    assert torch.equal(twin(x), want)
