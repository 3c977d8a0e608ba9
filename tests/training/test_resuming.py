"""A checkpoint holds what it resumes: other weights, data, losses and options are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxprune
from fxprune import Training
from fxprune.training.distillation import Distillation

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def scaled(by: float) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, batch: by * loss(model, batch)


def run(training: Training, model: nn.Module | None = None, **other: Any) -> Any:
    given = {"example_inputs": X[:1], "data": [X], "loss": loss, "progress": False, "scheduler": "group_lasso", **other}
    return fxprune.prune(model or net(), given.pop("criterion", "magnitude"), 0.3, training=training, **given)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


OTHER: dict[str, dict[str, Any]] = {
    "model": {"model": net(1)},
    "data": {"data": [X + 1]},
    "loss": {"loss": lambda m, b: m(b).abs().mean()},
    "criterion": {"criterion": lambda ctx: {n: p.abs() for n, p in ctx.parameters.items()}},
    "example_inputs": {"example_inputs": X[:2]},
    "ignore": {"ignore": (lambda name, module: False,)},
    "round_to": {"round_to": 2},
    "seed": {"seed": 1},
    "optimizer": {"optimizer": "soap"},
    "clip": {"clip": 0.5},
    "learning_rate": {"learning_rate": 0.1 + 1e-12},
    "distill": {"distill": Distillation(output=0.25)},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = Training(6, learning_rate=0.1, checkpoint_dir=tmp_path_factory.mktemp("run"))
    run(training)
    return training


@pytest.mark.parametrize("name", OTHER)
def test_another_run_is_refused_by_name(name: str, finished: Training) -> None:
    given = dict(OTHER[name])
    own = {k: given.pop(k) for k in list(given) if hasattr(finished, k)}
    with pytest.raises(fxprune.SaveError, match=rf"is of another run: {name} was .* and now is .* checkpoint_dir="):
        run(replace(finished, **own), given.pop("model", None), **given)


def test_all_that_differs_is_named(finished: Training) -> None:
    with pytest.raises(fxprune.SaveError, match=r"model was .*; data was .*; loss was"):
        run(finished, net(1), data=[X + 1], loss=scaled(2.0))


def test_the_same_run_is_only_read(finished: Training) -> None:
    calls = []

    def spied(training: Training) -> Any:
        return run(training, data=CountedData(calls))

    folder = Path(str(finished.checkpoint_dir)).with_name("counted")
    training = replace(finished, checkpoint_dir=folder)
    first = spied(training)
    calls.clear()
    assert same(first, spied(training))
    assert len(calls) <= 2  # two looks, no training


class CountedData:
    def __init__(self, calls: list[int]) -> None:
        self.calls = calls

    def __iter__(self) -> Any:
        self.calls.append(1)
        return iter([X])


@pytest.mark.parametrize("by", [0.5, 2.0])
def test_the_value_in_a_closure_counts(by: float, tmp_path: Path) -> None:
    training = Training(3, checkpoint_dir=tmp_path / "made" / "by itself")
    run(training, loss=scaled(1.0))
    run(training, loss=scaled(1.0))
    with pytest.raises(fxprune.SaveError, match="another run: loss was"):
        run(training, loss=scaled(by))


def test_a_shuffling_loader_goes_on_and_another_dataset_does_not(tmp_path: Path) -> None:
    training = Training(5, checkpoint_dir=tmp_path, checkpoint_every=2)

    def loader(rows: Tensor) -> Any:
        return DataLoader(rows, 4, shuffle=True, generator=torch.Generator().manual_seed(0))

    first = run(training, data=loader(X))
    assert same(first, run(training, data=loader(X)))
    with pytest.raises(fxprune.SaveError, match="another run: data was DataLoader of 24"):
        run(training, data=loader(X.flip(0)))


def test_checkpoints_that_do_not_say_what_they_are_of_are_refused(finished: Training, tmp_path: Path) -> None:
    training = replace(finished, checkpoint_dir=tmp_path)
    run(training)
    file = max(tmp_path.glob("*/shared.pt"))
    held = torch.load(file, weights_only=True)
    del held["run"]["data"]
    torch.save(held, file)
    with pytest.raises(fxprune.SaveError, match="data was not written down and now is list of 1"):
        run(training)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run(Training(7, checkpoint_dir=tmp_path, checkpoint_every=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000006", "step-00000007"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("ratio", {"ratio": 0.31}),
        ("steps", {"steps": 9}),
        ("scheduler", {"scheduler": "one_shot"}),
        ("criterion", {"criterion": "lamp"}),
        ("limits", {"min_width": 3}),
        ("groups", {"model": nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))}),
    ],
)
def test_the_state_of_a_pruner_fits_a_pruner_of_the_same_arguments(name: str, other: dict[str, Any]) -> None:
    def pruner(**given: Any) -> fxprune.Pruner[nn.Module]:
        options = {"scheduler": "group_lasso", "criterion": "magnitude", "ratio": 0.3, "steps": 8, **given}
        return fxprune.Pruner(options.pop("model", None) or net(), example_inputs=X[:1], **options)

    made = pruner()
    made.step()
    state = made.state_dict()
    pruner().load_state_dict(state)
    with pytest.raises(fxprune.SaveError, match=rf"is of another pruner: {name} was .* and now is"):
        pruner(**other).load_state_dict(state)
