"""What the test of other numbers of processes starts: python regrouped_runs.py DIR KIND PROCESSES STOP ...

Each process is forked, so that torch is imported once.  A run goes on from the checkpoints in DIR, if there are any; at
STOP steps all processes are gone, 0: it runs to its end.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp  # once, and not in every process
import training_runs
from fsdp_runs import shared_out, told_by
from torch import distributed, nn
from training_runs import IMAGES, loader, loss

import fxprune
from fxprune import Training

GLOBAL = 16  # samples a step, of all processes
STEPS, AFTER, EVERY = 20, 4, 11  # checkpoints before the cut, and after it


class Stopped(BaseException):
    """The run ends here."""


class Stopping:
    """A loss that ends the process at its n-th call in train mode."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        self.left -= model.training
        if not self.left:
            raise Stopped
        return loss(model, batch)


def run(folder: Path | None, kind: str, stop: int = 0) -> dict[str, Any]:
    """A run, on as many processes as there are; `kind` is "shards" or "plain"."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    net = training_runs.net()
    net.batch, net.drop = nn.Identity(), nn.Identity()  # which differ between processes
    model = shared_out(net) if kind == "shards" else net
    given = {"ema_decay": 0.9, "checkpoint_dir": folder, "checkpoint_every": EVERY}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        small = training_runs.run(
            Training(STEPS, after=AFTER, **given),
            how=Stopping(stop),
            model=model,
            data=loader(GLOBAL // world, shuffle=False),
        )
    return {**told_by(small), "warned": [str(w.message) for w in warned if "goes on" in str(w.message)]}


def process(folder: Path, kind: str, rank: int, processes: int, stop: int) -> None:
    name = f"{kind}-{processes}-{stop}"
    if processes > 1:
        os.environ.update({n: str(rank) for n in ("RANK", "LOCAL_RANK")})
        os.environ.update({n: str(processes) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")})
        meeting = f"file://{folder}/meeting-{name}"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    told: dict[str, Any]
    try:
        told = run(folder / "kept", kind, stop)
    except (Stopped, fxprune.FxPruneError) as e:
        told = {"error": f"{type(e).__name__}: {e}"}
    (folder / f"told-{name}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def main(*arguments: str) -> None:
    torch.set_num_threads(1)
    fxprune.trace(training_runs.net(), IMAGES[:2])  # what it imports need not be imported in every process
    for folder, kind, number, stop in zip(*(iter(arguments),) * 4, strict=True):
        Path(folder).mkdir(exist_ok=True)
        children = []
        for rank in range(int(number)):
            child = os.fork()
            if not child:
                code = 1
                try:
                    process(Path(folder), kind, rank, int(number), int(stop))
                    code = 0
                finally:
                    os._exit(code)  # no destructors: they would wait for a process that is gone
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(f"{kind} on {number}: exit codes {codes}")


if __name__ == "__main__":
    main(*sys.argv[1:])
