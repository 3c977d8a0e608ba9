"""A loop with accelerate prunes while it trains: optimizer, schedule and saved states go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import fxprune
from fxprune.integrations.accelerate import prepared
from fxprune.integrations.handoff import bare, plain

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch[:, :2]).square().mean()


class Loop:
    """Steps of two batches each; the masks take twenty."""

    def __init__(self) -> None:
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = net()
        model, self.optimizer = self.accelerator.prepare(model, torch.optim.Adam(model.parameters(), 1e-2))
        given = {"criterion": "taylor", "example_inputs": X[:2]}
        self.pruning = prepared(self.accelerator, model, self.optimizer, steps=20, loss=loss, **given)

    def go(self, start: int, stop: int) -> None:
        for k in range(2 * start, 2 * stop):
            batch = X[4 * (k % 4) : 4 * (k % 4) + 4]
            with self.accelerator.accumulate(self.pruning.model):
                self.accelerator.backward(loss(self.pruning.model, batch))
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.pruning.step(batch)


def test_the_model_is_small_and_its_optimizer_went_on() -> None:
    loop = Loop()
    before = loop.pruning.model
    loop.go(0, 19)
    assert not loop.pruning.done, "only steps of the optimizer count"
    loop.go(19, 22)
    assert loop.pruning.done
    assert loop.pruning.model is before
    assert sum(p.numel() for p in before.parameters()) <= 0.62 * sum(p.numel() for p in net().parameters())
    inner = plain(loop.optimizer)
    assert [id(p) for g in inner.param_groups for p in g["params"]] == [id(p) for p in before.parameters()]
    assert all(inner.state[p]["exp_avg"].shape == p.shape for p in before.parameters())
    assert loop.pruning.plan == fxprune.report(before).plan


def test_a_saved_state_goes_on_to_the_same_model(tmp_path: Path) -> None:
    first, again = Loop(), None
    first.go(0, 11)
    first.accelerator.save_state(str(tmp_path / "half"))
    first.go(11, 22)
    first.accelerator.save_state(str(tmp_path / "end"))
    again = Loop()
    again.accelerator.load_state(str(tmp_path / "half"))
    again.go(11, 22)
    for name, value in first.pruning.model.state_dict().items():
        assert torch.equal(value, again.pruning.model.state_dict()[name]), name
    small = fxprune.apply(net(), first.pruning.plan, example_inputs=X[:2])  # type: ignore[type-var]
    small.load_state_dict(_weights(tmp_path / "end"))
    assert torch.equal(small(X), first.pruning.model(X))


def _weights(folder: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_wrappers_are_looked_through() -> None:
    model = net()
    assert bare(torch.compile(model)) is model
    accelerator = Accelerator(cpu=True)
    with pytest.raises(fxprune.InputsError, match="needs a loss"):
        prepared(accelerator, model, torch.optim.SGD(model.parameters()), steps=20, example_inputs=X)
