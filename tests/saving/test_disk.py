"""A disk that is full or refuses: an error of ours, and what was there stays."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import fxprune
from fxprune.errors import InputsError, SaveError


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A real disk of one megabyte."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system can only be mounted here by the system's administrator")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).pow(2).mean()  # type: ignore[no-any-return]


def large() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 2))


def test_a_full_disk_is_a_save_error_and_keeps_the_old_folder(tiny: Path) -> None:
    fxprune.save(nn.Linear(2, 2), tiny / "m")
    with pytest.raises(SaveError, match=r"cannot be written: .*No space left on device.*; what was there is as it was"):
        fxprune.save(large(), tiny / "m")
    assert isinstance(fxprune.load(tiny / "m", nn.Linear(2, 2)), nn.Linear)
    assert [p.name for p in tiny.iterdir()] == ["m"]


def test_a_full_disk_under_a_checkpoint_is_a_save_error(tiny: Path) -> None:
    x = torch.randn(2, 64)
    given: dict[str, Any] = {"example_inputs": x, "data": [x], "loss": loss, "progress": False}
    training = fxprune.Training(4, checkpoint_dir=tiny / "ck", checkpoint_every=2)
    with pytest.raises(SaveError, match=r"the checkpoint .* cannot be written"):
        fxprune.prune(large(), "magnitude", 0.3, scheduler="group_lasso", training=training, **given)


def test_a_full_disk_under_a_table_or_a_picture_is_an_inputs_error(tiny: Path) -> None:
    (tiny / "ballast").write_bytes(bytes(2**20 - 4096))
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(2, 4)
    given: dict[str, Any] = {"example_inputs": x, "data": [x], "loss": loss, "progress": False}
    table = fxprune.sensitivity(net, shares=(0.5,), **given)
    with pytest.raises(InputsError, match=r"p.png cannot be written: OSError: .*No space left on device"):
        table.plot(tiny / "p.png")


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), PermissionError(13, "Permission denied"), OSError(30, "Read-only")],
)
def test_whatever_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    fxprune.save(nn.Linear(2, 2), tmp_path / "m")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SaveError, match=f"cannot be written.*{error.strerror}"):
        fxprune.save(nn.Linear(3, 3), tmp_path / "m")


def test_what_safetensors_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    with pytest.raises(SaveError, match=r"cannot be written: SafetensorError: .*No space left on device"):
        fxprune.save(nn.Linear(3, 3), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_picture_or_a_table_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    table = fxprune.Sensitivity("Net", "loss", 1.0, ())
    with pytest.raises(InputsError, match=r"nowhere/t.csv cannot be written: FileNotFoundError"):
        table.to_csv(tmp_path / "nowhere" / "t.csv")
    with pytest.raises(InputsError, match=r"nowhere/p.png cannot be written: FileNotFoundError"):
        table.plot(tmp_path / "nowhere" / "p.png")
    with pytest.raises(InputsError, match=r"p.odd cannot be drawn: .*name a .png"):
        table.plot(tmp_path / "p.odd")
