"""The runs that the tests of training start, in the test's process or in processes of their own.

python training_runs.py killed DIR      a run that kills itself in the middle
torchrun ... training_runs.py two DIR   a run of two processes, and what FSDP is told
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune import Training

IMAGES = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A group norm, a residual stream, a layer norm, dropout, and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 24, 1)
        self.batch, self.blocks = nn.BatchNorm2d(24), nn.ModuleList([nn.Conv2d(24, 16, 1), nn.Conv2d(16, 16, 1)])
        self.layer, self.drop, self.head = nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.batch(self.conv(torch.relu(self.norm(x))))
        for block in self.blocks:
            y = block(torch.relu(y))
        return self.head(self.drop(self.layer((x + y).mean((2, 3)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.mean((2, 3)).sum(1, keepdim=True)).square().mean()


def noisy(model: nn.Module, batch: Tensor) -> Tensor:
    return loss(model, batch + 0.1 * torch.randn_like(batch))


def loader(size: int = 8, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES), size, shuffle, collate_fn=lambda rows: torch.stack([r[0] for r in rows]))


def run(
    training: Training,
    scheduler: Any = "soft",
    how: Callable[..., Tensor] | None = noisy,
    model: nn.Module | None = None,
    criterion: str = "taylor",
    ratio: float = 0.4,
    **options: Any,
) -> Any:
    """A run on `net`; `options` go to `prune`."""
    given = {"data": loader(), "example_inputs": IMAGES[:2], "progress": False, **options}
    return fxprune.prune(model or net(), criterion, ratio, loss=how, scheduler=scheduler, training=training, **given)


class Stopping:
    """A loss that ends the process, or raises, at the n-th call under training."""

    def __init__(self, at: int, stop: Callable[[], None]) -> None:
        self.left, self.stop = at, stop

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.left -= model.training
        if not self.left:
            self.stop()
        return noisy(model, batch)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: str) -> None:
    stop = Stopping(27, die)
    run(Training(32, after=8, ema_decay=0.9, checkpoint_dir=folder, checkpoint_every=5), how=stop)


def two(folder: str) -> None:
    """Write what each process found."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    training = Training(30, after=2, checkpoint_dir=Path(folder) / "checkpoints", checkpoint_every=16)
    model = net()
    model.batch, model.drop = nn.Identity(), nn.Identity()  # batch statistics and dropout differ between processes
    small = run(training, how=loss, model=model, data=loader(8, shuffle=False))
    rank = int(os.environ["RANK"])
    told = {"plan": fxprune.report(small).plan.to_json(), "loss": fxprune.report(small).history.column("loss").tolist()}
    told["weights"] = float(sum(p.double().sum() for p in small.parameters()))
    sharded = fully_shard(net(), mesh=init_device_mesh("cpu", (2,)))
    calls = {
        "trace": lambda: fxprune.trace(sharded, IMAGES[:2]),
    }
    for name, call in calls.items():
        try:
            call()
        except fxprune.InputsError as e:
            told[name] = str(e)
    Path(folder, f"told-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
