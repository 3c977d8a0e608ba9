"""Models that can compute activations anew do so in scoring, if there would be many; all else is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

import fxprune
from fxprune.adapter import find_adapter
from fxprune.scoring import recomputing


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


class Wrapped(nn.Module):
    """A model whose part can be told to."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)


class Unwilling(UNet2DModel):
    def enable_gradient_checkpointing(self, *args: Any) -> None:
        raise ValueError(f"{type(self).__name__} does not support gradient checkpointing")


def switches(net: nn.Module) -> list[Any]:
    return [{k: v for k, v in vars(m).items() if k in recomputing.WRITTEN} for m in net.modules()]


def scored(net: nn.Module, inner: nn.Module, criterion: str) -> tuple[fxprune.Scores, int]:
    """The scores, and how many blocks were told to while the loss ran."""
    told: list[int] = []
    adapter = find_adapter(inner)
    graph = fxprune.trace(net, adapter.example_inputs(inner))
    loss = adapter.loss_of(inner)
    assert loss is not None

    def watched(model: nn.Module, batch: Any) -> Any:
        told.append(sum(bool(getattr(m, "gradient_checkpointing", False)) for m in inner.modules()))
        return loss(model, batch)

    data = [torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))]
    found = fxprune.score(graph, net, criterion, data=data, loss=watched)
    assert len(set(told)) == 1
    return found, told[0]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("criterion", ["taylor", "gradflow"])
def test_the_scores_are_the_same_and_the_model_is_as_it_was(
    criterion: str, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = unet()
    net = Wrapped(inner) if wrapped else inner
    before = switches(net)
    expected, told = scored(net, inner, criterion)
    assert not told
    monkeypatch.setattr(recomputing, "MANY", 0)
    found, told = scored(net, inner, criterion)
    assert told >= 2
    assert any("compute activations anew" in note for note in found.notes)
    assert not any("compute activations anew" in note for note in expected.notes)
    assert switches(net) == before
    for name, values in expected.values.items():
        largest = np.abs(values).max()
        np.testing.assert_allclose(found.values[name], values, rtol=0, atol=1e-4 * largest)


def test_who_has_chosen_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "MANY", 0)
    net = unet()
    net.enable_gradient_checkpointing()
    net.mid_block.gradient_checkpointing = False
    before = switches(net)
    found, told = scored(net, net, "taylor")
    assert told == sum(bool(held.get("gradient_checkpointing")) for held in before) >= 2
    assert switches(net) == before
    assert not any("compute activations anew" in note for note in found.notes)


def test_a_model_that_cannot_and_a_criterion_without_gradients_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "MANY", 0)
    net = unet()
    net.__class__ = Unwilling
    found, told = scored(net, net, "taylor")
    assert not told
    assert not any("compute activations anew" in note for note in found.notes)
    other = unet()
    assert not scored(other, other, "wanda")[1]
