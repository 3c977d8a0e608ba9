"""What a model drops while it trains: nothing where it learns from the dense one, else what it is made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from training_runs import run
from transformers.models.swin.modeling_swin import SwinDropPath

from fxprune import InputsError, Training
from fxprune.training.dropout import dropping, to_train

X = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0))
ATTENTION, LSTM = nn.MultiheadAttention(8, 2, dropout=0.5), nn.LSTM(8, 8, 2, dropout=0.5)
GRU, RNN, ENCODER = nn.GRU(8, 8, 2, dropout=0.5), nn.RNN(8, 8, 2, dropout=0.5), nn.TransformerEncoderLayer(8, 2)
FUNCTIONS: dict[str, Callable[[], Tensor]] = {
    "layer": lambda: nn.Dropout(0.5)(X),
    "by position": lambda: F.dropout(X, 0.5, True),
    "channels": lambda: F.dropout1d(X, p=0.5),
    "alpha": lambda: nn.AlphaDropout()(X),
    "channels, alpha": lambda: nn.FeatureAlphaDropout()(X),
    "torch": lambda: torch.dropout(X, 0.5, True),
    "operator": lambda: torch.ops.aten.dropout.default(X, 0.5, True),
    "native operator": lambda: torch.ops.aten.native_dropout.default(X, 0.5, True)[0],
    "attention": lambda: F.scaled_dot_product_attention(X, X, X, None, 0.5),
    "attention by name": lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=0.5, scale=0.3),
    "heads": lambda: ATTENTION(X, X, X)[0],
    "LSTM": lambda: LSTM(X)[0],
    "GRU": lambda: GRU(X)[0],
    "RNN": lambda: RNN(X)[0],
    "encoder": lambda: ENCODER(X),
}


def same(a: Tensor, b: Tensor) -> bool:
    """But for the last bits: what is dropped moves far more."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_drops_keeps_everything_where_it_should(name: str) -> None:
    made = FUNCTIONS[name]
    assert not same(made(), made())
    with dropping(True):
        assert not same(made(), made())
    with dropping(False):
        assert same(made(), made())


def test_what_is_kept_is_what_eval_mode_gives() -> None:
    own = F.scaled_dot_product_attention(X, X, X, scale=0.3)
    with dropping(False):
        assert same(F.dropout(X, 0.5, True), X)
        assert same(FUNCTIONS["attention by name"](), own)


def test_nothing_is_dropped_in_a_forward_that_backward_repeats() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    def gradient(forward: Callable[[Tensor], Tensor]) -> Tensor:
        model.zero_grad()
        with dropping(False):
            forward(X).square().sum().backward()
        assert model[0].weight.grad is not None
        return model[0].weight.grad.clone()

    again = gradient(lambda x: checkpoint(model, x, use_reentrant=False, preserve_rng_state=False))
    torch.testing.assert_close(again, gradient(model))


class DropHead(nn.Linear):
    """Whose name says what it does not do."""


class Noise(nn.Module):
    """Whose name does not say what it does."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Answers(nn.Module):
    """Logits in train mode, probabilities in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.softmax(-1)


class Sum(nn.Module):
    """Of two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_layers_that_only_draw_are_in_eval_mode_and_no_others() -> None:
    draw = [timm.layers.DropPath(0.5), timm.layers.DropBlock2d(0.5), torchvision.ops.StochasticDepth(0.5, "row")]
    draw += [SwinDropPath(0.5), nn.Dropout2d(0.5), nn.RReLU(), Noise()]
    others = [nn.BatchNorm2d(4), DropHead(4, 4), nn.ReLU(), Answers(), Sum(), nn.Sequential(nn.Conv2d(4, 4, 1))]
    model = nn.Sequential(*draw, *others).eval()
    before = torch.get_rng_state()
    to_train(model, drops=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model] == [False] * len(draw) + [True] * len(others)
    to_train(model, drops=True)
    assert all(m.training for m in model)


class Dropping(nn.Module):
    """A layer, a function, and stochastic depth that drop."""

    def __init__(self, each: float = 0.3) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)
        self.norm, self.drop = nn.BatchNorm2d(16), nn.Dropout(each)
        self.path, self.each = torchvision.ops.StochasticDepth(each, "row"), each

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.path(F.dropout(self.conv(self.drop(torch.relu(x))), self.each, self.training))
        return self.head(x.mean((2, 3)))


def draws(training: Training, scheduler: Any) -> list[bool]:
    """Whether each step of a run drops anything: two forwards of the same batch differ."""
    seen = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        first, second = model(batch), model(batch)
        if model.training:
            seen.append(not same(first, second))
        return first.square().mean()

    torch.manual_seed(0)
    model = Dropping().eval()
    small = run(training, scheduler, loss, model)
    assert small.drop.p == model.drop.p == 0.3
    assert small.stem.out_channels < 16
    assert not any(m.training for m in small.modules())
    return seen


@pytest.mark.parametrize("scheduler", ["one_shot", "soft"])
@pytest.mark.parametrize(
    ("options", "drops"),
    [
        ({}, False),
        ({"distill": None}, True),
        ({"distill": None, "dropout": False}, False),
        ({"dropout": True}, True),
        ({"optimizer": lambda p: torch.optim.SGD(p, 1e-3)}, False),
    ],
)
def test_a_run_that_learns_from_the_dense_model_drops_nothing(
    scheduler: str, options: dict[str, Any], drops: bool
) -> None:
    assert draws(Training(20, after=2, **options), scheduler) == [drops] * 22


def test_dropout_is_yes_or_no() -> None:
    with pytest.raises(InputsError, match="dropout"):
        Training(1, dropout=0.1)  # type: ignore[arg-type]
