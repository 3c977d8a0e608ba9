"""Checkpoints of a run: folders that are complete or not there.

    DIR/step-00000200/shared.pt       weights, optimizer, averages, what the run is; by the first process
    DIR/step-00000200/process-0.pt    masks, place in the data, random numbers; by each

Both hold tensors, numbers and text, and are read without pickle.  A folder is filled under another name and renamed
when all of it is there; then older ones go.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fxprune.errors import SaveError
from fxprune.training.serialization import from_plain, to_plain

NAME = re.compile(r"step-(\d{8})")


class Checkpoints:
    """The checkpoints in a folder."""

    def __init__(self, folder: str | os.PathLike[str], accelerator: Accelerator) -> None:
        self.folder, self.accelerator = Path(folder), accelerator

    def latest(self) -> Path | None:
        """The last complete one."""
        found = sorted(p for p in self.folder.glob("step-*") if NAME.fullmatch(p.name))
        return found[-1] if found else None

    def write(self, step: int, shared: Mapping[str, Any], own: Mapping[str, Any]) -> Path:
        """Write one; every process calls this.

        Raises:
            SaveError: the disk refuses, or the state holds something else than plain data.
        """
        final = self.folder / f"step-{step:08d}"
        new = self.folder / f".{final.name}.new"
        first, wait = self.accelerator.is_main_process, self.accelerator.wait_for_everyone
        try:
            if first:
                for left in self.folder.glob(".step-*.new"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                new.mkdir(parents=True)
            wait()
            _write(own, new / f"process-{self.accelerator.process_index}.pt")
            if first:
                _write({**shared, "processes": self.accelerator.num_processes}, new / "shared.pt")
            wait()
            if first:
                self._publish(new, final)
        except OSError as e:
            raise SaveError(f"the checkpoint {final} cannot be written: {type(e).__name__}: {e}") from e
        return final

    def read(self, path: Path, run: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What all processes share, and what is this one's own.

        Args:
            run: what the run is; must be the same as then.

        Raises:
            SaveError: the checkpoint is of another run or another number of processes, or damaged.
        """
        shared = _read(path / "shared.pt")
        if different := [k for k in run if shared["run"].get(k) != run[k]]:
            k = different[0]
            raise SaveError(
                f"{path} is of another run: {k} was {shared['run'].get(k)} and now is {run[k]}; go on with the same "
                "arguments, or name another checkpoint_dir="
            )
        if shared["processes"] != self.accelerator.num_processes:
            raise SaveError(
                f"{path} was written by {shared['processes']} processes, and now there are "
                f"{self.accelerator.num_processes}; go on with as many"
            )
        return shared, _read(path / f"process-{self.accelerator.process_index}.pt")

    def _publish(self, new: Path, final: Path) -> None:
        older = [p for p in self.folder.glob("step-*") if NAME.fullmatch(p.name)]
        os.replace(new, final)
        for p in older:
            shutil.rmtree(p, ignore_errors=True)


def _write(state: Mapping[str, Any], path: Path) -> None:
    held = to_plain(state)
    with path.open("wb") as file:
        try:
            torch.save(held, file)
        except RuntimeError as e:  # so torch tells a disk that refuses
            raise OSError(f"torch.save failed: {e!s:.200}") from e
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = from_plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as e:
        raise SaveError(f"{path} is damaged or missing: {type(e).__name__}: {e}; delete its folder") from e
    return state
