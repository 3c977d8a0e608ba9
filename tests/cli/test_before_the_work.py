"""Commands check what they will write before they work, and lose nothing where writing fails after all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import folder
from fxprune.cli.folder import saved_somewhere, writable
from fxprune.cli.prune import _refuse_untrained


def test_options_of_training_need_steps() -> None:
    nothing: dict[str, Any] = {"after": 0, "learning_rate": None, "ema_decay": None, "mixed_precision": None}
    nothing |= {"checkpoints": None, "picture": None}
    _refuse_untrained(None, **nothing)
    for name, value in (("after", 5), ("learning_rate", 0.1), ("ema_decay", 0.0), ("picture", Path("run.png"))):
        _refuse_untrained(10, **{**nothing, name: value})
        with pytest.raises(fxprune.InputsError, match=f"--{name.replace('_', '-')} goes with training: pass --steps"):
            _refuse_untrained(None, **{**nothing, name: value})


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    with pytest.raises(fxprune.SaveError, match="cannot be written: NotADirectoryError"):
        writable(tmp_path / "file" / "a")


def test_a_model_that_cannot_be_saved_is_saved_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, 8)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2))
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    real = folder.save

    def full(model: Any, directory: Path) -> Any:
        if directory == tmp_path / "out":
            raise fxprune.SaveError("disk full")
        return real(model, directory)

    monkeypatch.setattr(folder, "save", full)
    with pytest.raises(fxprune.SaveError, match="disk full; the pruned model was saved in") as caught:
        saved_somewhere(small, tmp_path / "out")
    found = re.search(r"saved in (\S+) instead", str(caught.value))
    assert found
    assert torch.equal(fxprune.load(found[1], model=net)(x), small(x))
