"""What the test of processes that are gone starts: python killed_runs.py DIR [NAME ...].

For every run two processes are forked, so that torch is imported once; the second is killed in the middle, and the
first writes down which error it met.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp  # once, and not in every process
import training_runs
from fsdp_runs import shared_out
from torch import Tensor, distributed, nn
from training_runs import IMAGES, die, loader, loss

import fxprune
from fxprune import Training
from fxprune.training import checkpoints, sharded

EVERY = 4  # steps between checkpoints


class Dying:
    """A function that ends the second process at its n-th call."""

    def __init__(self, at: int, function: Callable[..., Any]) -> None:
        self.left, self.function = at, function

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        self.left -= 1
        if not self.left and distributed.get_rank() == 1:
            die()
        return self.function(*args, **keywords)


def score(folder: Path) -> None:
    net, data = training_runs.net(), list(IMAGES[:32].split(8))
    fxprune.score(fxprune.trace(net, IMAGES[:2]), net, "taylor", data=data, loss=Dying(3, loss))


def prune(folder: Path) -> None:
    how, given = Dying(3, loss), {"example_inputs": IMAGES[:2], "progress": False}
    data = list(IMAGES[:32].split(8))
    fxprune.prune(shared_out(training_runs.net()), "taylor", 0.4, data=data, loss=how, **given)


def soft_shards(folder: Path) -> None:
    train(Training(20), how=Dying(9, loss), model=shared_out(training_runs.net()))


def checkpoint(folder: Path) -> None:
    """The second one's own part."""
    checkpoints._write = Dying(2, checkpoints._write)
    train(Training(20, checkpoint_dir=folder / "kept", checkpoint_every=EVERY))


def checkpoint_of_shards(folder: Path) -> None:
    sharded.save = Dying(2, sharded.save)  # type: ignore[attr-defined]
    training = Training(20, checkpoint_dir=folder / "kept", checkpoint_every=EVERY)
    train(training, model=shared_out(training_runs.net()))


def train(training: Training, how: Callable[..., Tensor] = loss, model: nn.Module | None = None) -> None:
    training_runs.run(training, how=how, model=model, data=loader(4))


RUNS: dict[str, Callable[[Path], None]] = {
    "scoring": score,
    "a cut of shards": prune,
    "a run in shards": soft_shards,
    "a checkpoint": checkpoint,
    "a checkpoint of shards": checkpoint_of_shards,
}


def process(name: str, folder: Path, rank: int) -> None:
    """One of the two processes of a run."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    folder = folder / name
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    told: dict[str, Any] = {"error": "", "text": "it ran to its end"}
    try:
        RUNS[name](folder)
    except BaseException as e:  # noqa: BLE001 - whatever it is, the test judges it
        told = {"error": type(e).__name__, "ours": isinstance(e, fxprune.FxPruneError), "text": str(e)}
    (folder / f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    fxprune.trace(training_runs.net(), IMAGES[:2])  # what it imports need not be imported in every process
    for name in names or RUNS:
        Path(folder, name).mkdir(parents=True)
        children = []
        for rank in range(2):
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    process(name, Path(folder), rank)
                os._exit(0)  # no destructors: they would wait for a process that is gone
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        Path(folder, name, "codes.json").write_text(json.dumps(codes), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
