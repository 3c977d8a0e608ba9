"""Averaged weights go on with the small model: the averages themselves, cut, and not its weights of today."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

import fxprune

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def handed_over(make: Any) -> tuple[Any, nn.Module, fxprune.Carry]:
    """Averages that lag behind the weights, after the hand-off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    ema = make(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    pruner = fxprune.Pruner(model, "one_shot", "magnitude", 0.4, steps=1, example_inputs=X)
    pruner.step()
    small = pruner.finish(ema=ema)
    return ema, small, fxprune.Carry(model, small, pruner.graph, pruner.flow.plan)


def lags(found: list[torch.Tensor], small: nn.Module) -> bool:
    """Whether every average is the weight before all of them were moved by one."""
    pairs = zip(found, small.parameters(), strict=True)
    return all(a.shape == p.shape and torch.allclose(a, p - 1, atol=1e-6) for a, p in pairs)


def test_an_average_goes_on_with_its_values_and_its_count() -> None:
    def made(model: nn.Module) -> fxprune.Average:
        average = fxprune.Average(model, 0.9)
        average.step(model)
        average.step(model)
        return average

    ema, small, _ = handed_over(made)
    assert small.get_submodule("0").out_features < 8
    assert lags([ema.values[n] for n, _ in small.named_parameters()], small)
    assert set(ema.values) == {n for n, _ in small.named_parameters()} | {"1.running_mean", "1.running_var"}
    assert ema.taken == 2
    before = ema.values["3.bias"].clone()
    ema.step(small)
    assert ema.taken == 3
    d = min(0.9, 4 / 13)
    assert torch.allclose(ema.values["3.bias"], d * before + (1 - d) * small.get_parameter("3.bias"))


def test_diffusers_averages_go_on() -> None:
    def made(model: nn.Module) -> EMAModel:
        ema = EMAModel(model.parameters(), decay=0.9)
        ema.step(model.parameters())
        return ema

    ema, small, _ = handed_over(made)
    assert ema.optimization_step == 1
    assert lags(ema.shadow_params, small)
    ema.step(small.parameters())
    assert not lags(ema.shadow_params, small)


def test_torchs_averages_go_on() -> None:
    ema, small, _ = handed_over(torch.optim.swa_utils.AveragedModel)
    assert lags(list(ema.module.parameters()), small)


def test_averages_of_another_model_are_refused() -> None:
    *_, carry = handed_over(lambda model: fxprune.Average(model, 0.5))
    with pytest.raises(fxprune.InputsError, match="not tensors of the model's parameters"):
        carry.tensors(list(carry.small.parameters()))
