"""Checkpoints of a run: folders that are complete or not there.

    DIR/step-00000200/shared.pt       weights, optimizer, averages, what the run is; by the first process
    DIR/step-00000200/process-0.pt    masks, place in the data, random numbers; by each
    DIR/step-00000200/shards/         what is sharded (FSDP2) of weights, optimizer and averages, as torch.distributed's
                                      `checkpoint` writes it; each process its own

All hold tensors, numbers and text, and are read without pickle; torch's list of shards is one.  A folder is filled
under another name and renamed when all of it is there; then older ones go, but for the last but one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from fxprune.errors import FxPruneError, SaveError
from fxprune.scoring.identity import differences
from fxprune.training.regrouping import regrouped
from fxprune.training.serialization import from_plain, to_plain

NAME = re.compile(r"step-(\d{8})")
SHARED, SHARDS = "shared.pt", "shards"  # in each folder
SPARE = 2**16  # bytes free on a disk below which it is called full
KEPT = 2  # the last one, and the one before, should the last turn out to be of no use


class Checkpoints:
    """The checkpoints in a folder."""

    def __init__(self, folder: str | os.PathLike[str], accelerator: Accelerator) -> None:
        self.folder, self.accelerator = Path(folder), accelerator

    def prepare(self) -> None:
        """Make the folder, and see that it can be written to.

        Raises:
            SaveError: it cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as e:
            raise SaveError(
                f"checkpoint_dir={str(self.folder)!r} cannot be written to: {type(e).__name__}: {e}; name another one"
            ) from e

    def all(self) -> list[Path]:
        """The complete ones, the last at the end."""
        return sorted(p for p in self.folder.glob("step-*") if NAME.fullmatch(p.name))

    def latest(self) -> Path | None:
        """The last complete one."""
        return next(reversed(self.all()), None)

    def write(
        self, step: int, shared: Mapping[str, Any], own: Mapping[str, Any], more: Callable[[Path], None] | None = None
    ) -> Path:
        """Write one; every process calls this.

        Args:
            more: writes what else belongs into the folder.

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
            if more is not None:
                more(new)
            if first:
                _write({**shared, "processes": self.accelerator.num_processes}, new / SHARED)
            wait()
            if first:
                self._publish(new, final)
        except OSError as e:
            raise SaveError(f"the checkpoint {final} cannot be written: {type(e).__name__}: {e}") from e
        return final

    def read(self, path: Path, run: Mapping[str, str], samples: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        """What all processes share, and what is this one's own: of another number of processes, regrouped.

        Args:
            run: what the run is; must be the same as then.
            samples: of the data, however they are batched; on another number of processes batches may have other sizes.

        Raises:
            SaveError: the checkpoint is of another run, or damaged, or cannot be regrouped.
        """
        rank, number = self.accelerator.process_index, self.accelerator.num_processes
        with of_this_version(path):
            shared = _read(path / SHARED)
            processes = int(shared["processes"])
            alike = processes != number and samples and shared.get("samples") == samples
            what = differences(shared["run"], {k: v for k, v in run.items() if k != "data" or not alike})
        if what:
            raise SaveError(
                f"{path} is of another run: {what}; go on with the same arguments, or name another checkpoint_dir="
            )
        if processes == number:
            return shared, _read(path / f"process-{rank}.pt")
        states = [_read(path / f"process-{r}.pt") for r in range(processes)]
        with of_this_version(path):
            return shared, regrouped(states, rank, number, path)

    def _publish(self, new: Path, final: Path) -> None:
        if final.exists():  # of the same step
            shutil.rmtree(final)
        os.replace(new, final)
        for p in self.all()[:-KEPT]:
            shutil.rmtree(p, ignore_errors=True)


@contextlib.contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Within, a checkpoint is taken apart.

    Raises:
        SaveError: it lacks what this version wants, or holds it in another form: another version wrote it.
    """
    try:
        yield
    except (FxPruneError, torch.OutOfMemoryError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as e:
        told = " ".join(str(e).split())[:200]
        weights = (
            f"lie in {path / SHARDS}"
            if (path / SHARDS).exists()
            else f"are torch.load({str(path / SHARED)!r})['model']"
        )
        raise SaveError(
            f"{path} holds no state that this version of fxprune can go on from ({type(e).__name__}: {told}): "
            "another version wrote it. Finish the run with that one, or start anew with another checkpoint_dir=; the "
            f"weights {weights}"
        ) from e


def saved_beside(weights: Mapping[str, Any]) -> Path:
    """The file, in a new folder of its own, that weights are written to where there is no folder for checkpoints.

    Raises:
        SaveError: the disk refuses.
    """
    try:
        path = Path(tempfile.mkdtemp(prefix="fxprune-")) / "weights.pt"
        _write(weights, path)
    except OSError as e:
        raise SaveError(f"{type(e).__name__}: {e}") from e
    return path


def kept(error: FxPruneError, net: nn.Module, steps: int, write: Callable[[], Path]) -> FxPruneError:
    """An error that came after the work, restated: it holds the trained model, and says where that lies.

    Args:
        error: what happened.
        net: what has been trained.
        steps: how many trained it.
        write: puts it on disk, and says where.
    """
    try:
        where = f"lies in {write()}, and "
    except FxPruneError as e:
        where = f"could not be written ({e}), but "
    made = type(error)(f"{error}; what {steps} steps have trained {where}is this error's `kept`")
    made.kept = net
    return made


def _write(state: Mapping[str, Any], path: Path) -> None:
    held = to_plain(state)
    with path.open("wb") as file:
        try:
            torch.save(held, file)
        except RuntimeError as e:  # so torch tells a disk that refuses, without saying why it did
            why = os.strerror(errno.ENOSPC) if shutil.disk_usage(path.parent).free < SPARE else "torch.save failed"
            raise OSError(f"{why}: {e!s:.200}") from e
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = from_plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as e:
        raise SaveError(f"{path} is damaged or missing: {type(e).__name__}: {e}; delete its folder") from e
    return state
