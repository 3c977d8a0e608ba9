"""A checkpoint of another version, which lacks something or holds it otherwise, is refused, and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Training
from fxprune.errors import SaveError

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


def run(folder: Path, steps: int) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    training = Training(steps, checkpoint_dir=folder, checkpoint_every=2, ema_decay=0.9)
    given: dict[str, Any] = {"example_inputs": X, "data": [X], "loss": loss, "progress": False}
    return fxprune.prune(net, "magnitude", 0.3, scheduler="group_lasso", training=training, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one checkpoint, of the second of four steps."""
    made = tmp_path_factory.mktemp("run")
    run(made, 4)
    shutil.rmtree(made / "step-00000004")
    return made


def _lacks(*names: str) -> Callable[[dict[str, Any]], None]:
    def drop(state: dict[str, Any]) -> None:
        for name in names[:-1]:
            state = state[name]
        del state[names[-1]]

    return drop


def _other(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(name, value)


OLD: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "no run": ("shared.pt", _lacks("run")),
    "no processes": ("shared.pt", _lacks("processes")),
    "no plans": ("shared.pt", _lacks("plans")),
    "no average": ("shared.pt", _lacks("average")),
    "no weight": ("shared.pt", _lacks("model", "0.weight")),
    "another optimizer": ("shared.pt", _other("optimizer", {"state": {}, "param_groups": []})),
    "no averaged buffers": ("process-0.pt", _lacks("averaged")),
    "no buffers": ("process-0.pt", _lacks("stream")),
    "other numbers": ("process-0.pt", _other("rng", "none")),
}


@pytest.mark.parametrize("case", OLD)
def test_it_is_refused_and_says_what_to_do(case: str, folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "run"
    shutil.copytree(folder, old)
    file, change = OLD[case]
    path = old / "step-00000002" / file
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(SaveError, match=r"step-00000002.*another version wrote it.*checkpoint_dir="):
        run(old, 4)


def test_the_run_that_it_was_taken_from_goes_on(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    again, whole = run(tmp_path / "run", 4), run(tmp_path / "new", 4)
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))
