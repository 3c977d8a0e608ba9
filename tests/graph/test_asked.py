"""What a forward asks before it takes a path, and parts that no path can be traced through."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.graph.modules import training


class Auxiliary(nn.Module):
    """A head that runs where gradients are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.more = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h) + self.more(h) if self.training and torch.is_grad_enabled() else self.b(h)


class Padded(nn.Module):
    """An encoder that knows padding, for which torch has a fused kernel where no gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.i, self.o = nn.Linear(8, 16), nn.Linear(16, 3)
        self.t = nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.o(self.t(self.i(x), src_key_padding_mask=padding))


def test_a_head_that_runs_where_gradients_are_taken_is_cut() -> None:
    torch.manual_seed(0)
    model, x = Auxiliary(), torch.randn(3, 8)
    asked = torch.is_grad_enabled
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False)
    assert torch.is_grad_enabled is asked
    assert small.more.in_features == small.a.out_features < 32
    small.train()(x).sum().backward()
    assert small.more.weight.grad is not None


def test_other_threads_are_told_what_holds_for_them() -> None:
    told: list[bool] = []

    def ask() -> None:
        with torch.no_grad():
            told.append(torch.is_grad_enabled())

    with training(nn.Linear(2, 2)), torch.no_grad():
        assert torch.is_grad_enabled()  # asked by a model's code, in train mode
        other = threading.Thread(target=ask)
        other.start()
        other.join()
    assert told == [False]


@pytest.mark.parametrize("train", [False, True])
def test_a_padded_encoder_keeps_its_own_forward(train: bool) -> None:
    torch.manual_seed(0)
    given = torch.randn(2, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [0] * 5]).bool()
    model = Padded().train(train)
    small = fxprune.prune(model, "magnitude", 0.3, example_inputs=given, progress=False, strict=True)
    assert fxprune.report(small).forward == "module"
    assert torch.backends.mha.get_fastpath_enabled()
    small.train()(*given).sum().backward()


def scripted() -> nn.Module:
    return nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 2))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (scripted, "0 of this Sequential is compiled by torch.jit to TorchScript, whose code is fixed: put the module"),
        (lazy, "0 of this Sequential has no weights before it has run: call the model once"),
        (quantized, "0._packed_params of this Sequential is quantized, its weights packed: prune the float model"),
    ],
)
def test_parts_that_cannot_be_pruned_are_named(make: Any, told: str) -> None:
    with pytest.raises(fxprune.InputsError, match=told):
        fxprune.prune(make(), "magnitude", 0.3, example_inputs=torch.randn(2, 8), progress=False)
