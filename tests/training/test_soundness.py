"""Published state is good state, what can be known is known before the work, and a result is never lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Training
from fxprune.training.distillation import Distillation
from fxprune.training.soundness import not_finite

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2))


def square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


class Spoilt(torch.autograd.Function):
    """The identity; its gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * torch.nan


class At:
    """Does something to the loss, or to the model, at the n-th call under training."""

    def __init__(self, call: int, what: Any) -> None:
        self.left, self.what = call, what

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.left -= model.training
        value = square(model, batch)
        return value if self.left or not model.training else self.what(model, value)


def spoil(model: nn.Module, value: Tensor) -> Tensor:
    return Spoilt.apply(value)  # type: ignore[no-untyped-call, no-any-return]


def run(training: Training, loss: Any = square, model: nn.Module | None = None, **other: Any) -> Any:
    given = {"example_inputs": X, "data": [X], "progress": False, "scheduler": "group_lasso", **other}
    return fxprune.prune(model or net(), "magnitude", 0.3, loss=loss, training=training, **given)


# ---- published state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["one_shot", "group_lasso"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_not_finite_stops_the_run(scheduler: str, clip: float | None) -> None:
    with pytest.raises(
        fxprune.InputsError, match=r"gradient of step 5 is nan; lower the learning rate .* check batch 1 of epoch \d"
    ):
        run(Training(9, clip=clip), At(5, spoil), scheduler=scheduler)


def test_the_last_good_checkpoint_stays_and_is_named(tmp_path: Path) -> None:
    training = Training(12, checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(fxprune.InputsError, match=r"step 8 is nan; .*the last good checkpoint is .*step-00000006"):
        run(training, At(8, spoil))
    small = run(training, At(100, spoil))
    assert not not_finite(dict(small.named_parameters()))
    assert len(fxprune.report(small).history) == 12


class Counting(nn.Module):
    """A buffer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("checkpointed", [True, False])
def test_state_that_the_loss_does_not_show_is_neither_written_nor_returned(checkpointed: bool, tmp_path: Path) -> None:
    def loss(model: Any, batch: Tensor) -> Tensor:
        value = model.body(batch).square().mean()
        if model.training:
            with torch.no_grad():
                model.seen.fill_(torch.nan)
        return value  # type: ignore[no-any-return]

    training = Training(4, checkpoint_dir=tmp_path if checkpointed else None, checkpoint_every=1)
    with pytest.raises(fxprune.InputsError, match="seen is not finite after step"):
        run(training, loss, Counting())
    assert not list(tmp_path.glob("step-*"))


def test_infinities_that_a_model_was_given_with_are_its_own() -> None:
    small = run(Training(3), model=Counting())
    assert small.mask[1] == -torch.inf


def test_an_average_or_a_weight_that_is_not_finite_is_found() -> None:
    tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, torch.nan]), "c": torch.tensor([torch.inf]).half()}
    tensors |= {"d": torch.ones(2, dtype=torch.int64), "e": torch.empty(0)}
    assert not_finite(tensors) == ["b", "c"]
    model = net()
    with torch.no_grad():
        model[0].bias[3] = torch.nan  # type: ignore[index, operator, union-attr]
    with pytest.raises(fxprune.InputsError, match=r"0\.bias of this Sequential is not finite before any training"):
        run(Training(3), model=model)


# ---- before the work ------------------------------------------------------------------------------------------------


def refused(error: type[Exception], message: str, **training: Any) -> None:
    calls = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(1)
        return square(model, batch)

    with pytest.raises(error, match=message):
        run(Training(20, **training), loss)
    assert not calls


def test_what_can_be_known_is_known_before_any_loss(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(fxprune.InputsError, "picture=.* there is no folder", picture=tmp_path / "none" / "run.png")
    refused(fxprune.InputsError, r"a picture cannot be \.xyz; use \.png", picture=tmp_path / "run.xyz")
    refused(fxprune.InputsError, "picture=.* is a folder", picture=tmp_path)
    refused(fxprune.SaveError, "checkpoint_dir=.* cannot be written to", checkpoint_dir=tmp_path / "file")
    refused(fxprune.SaveError, "checkpoint_dir=.* cannot be written to", checkpoint_dir=tmp_path / "file" / "in")
    refused(fxprune.InputsError, "log_with='fancy' is no tracker", log_with=["fancy"])


def test_a_tracker_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.training.setup.get_available_trackers", list)
    refused(fxprune.InputsError, r'pip install "fxprune\[tensorboard\]"', log_with="tensorboard")
    refused(fxprune.InputsError, "pip install comet-ml", log_with="comet_ml")


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in ("steps", "accumulate", "remember", "checkpoint_every") for v in (2.5, torch.inf, "3", True, 0)]
    + [("after", 0.5), ("warmup", -1), ("clip", 0.0), ("clip", -1.0), ("clip", torch.nan)]
    + [("learning_rate", torch.nan), ("learning_rate", 0.0), ("ema_decay", 1.0), ("ema_decay", torch.nan)],
)
def test_numbers_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(fxprune.InputsError, match=re.escape(f"{name}=")):
        Training(**{"steps": 3, name: value})


@pytest.mark.parametrize("name", ["output", "features", "temperature"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_weights_of_distillation(name: str, value: float) -> None:
    with pytest.raises(fxprune.InputsError, match=f"{name}="):
        Distillation(**{name: value})  # type: ignore[arg-type]


def test_a_loss_that_ignores_the_model_is_refused() -> None:
    other = nn.Linear(8, 2)
    for scheduler in ("one_shot", "group_lasso"):
        with pytest.raises(fxprune.InputsError, match="does not look at the model"):
            run(Training(3), lambda m, b: other(b).sum(), scheduler=scheduler)


class Drifting(nn.Module):
    """Computes another thing once it has trained: the shape that its Python expects is fixed by a training step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 2)
        self.width = ""  # as text, which does not follow a cut

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.training:
            self.width = str(y.shape[-1])
        elif self.width and str(y.shape[-1]) != self.width:
            raise RuntimeError("other width than in training")
        return self.b(y)  # type: ignore[no-any-return]


def test_a_hand_off_that_cannot_hold_is_found_after_one_step() -> None:
    counted = At(100, spoil)
    with pytest.raises(fxprune.FxPruneError, match="found after the first step"):
        run(Training(50), counted, Drifting(), strict=True)
    assert counted.left == 99


# ---- after the work -------------------------------------------------------------------------------------------------


def place(error: BaseException) -> Path:
    found = re.search(r"lies in (\S+), and is this error's `kept`", str(error))
    assert found, str(error)
    return Path(found[1])


def test_a_picture_that_fails_in_the_end_loses_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()

    def gone(model: nn.Module, value: Tensor) -> Tensor:
        folder.rmdir()
        return value

    want = run(Training(6))
    with pytest.raises(fxprune.InputsError, match="cannot be written: FileNotFoundError") as caught:
        run(Training(6, picture=folder / "run.png"), At(5, gone))
    kept = caught.value.kept
    assert all(map(torch.equal, kept.parameters(), want.parameters()))
    assert fxprune.report(kept).plan == fxprune.report(want).plan
    held = torch.load(place(caught.value), weights_only=True)
    assert all(torch.equal(held[n], p) for n, p in want.state_dict().items())


def test_a_hand_off_that_fails_in_the_end_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(6, after=2, checkpoint_dir=tmp_path)
    want = run(Training(6, after=2))

    def fails(*_: Any, **__: Any) -> None:
        raise fxprune.VerifyError("not today")

    with monkeypatch.context() as patched:
        patched.setattr(fxprune.Pruner, "finish", fails)
        with pytest.raises(fxprune.VerifyError, match="not today; what 6 steps have trained lies in") as caught:
            run(training)
    assert place(caught.value) == tmp_path / "step-00000006"
    assert caught.value.kept[0].out_features == 24
    again = run(training)
    assert all(map(torch.equal, again.parameters(), want.parameters()))
