"""One training loop for all networks: a limit in minutes or steps, averaged weights, figures as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """How to train; whichever of `minutes` and `steps` is reached first ends it, and the learning rate is zero then."""

    minutes: float = 8.0
    steps: int = 10**9
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 300
    ema_decay: float = 0.999
    clip: float = 1.0
    reports: int = 20
    compiled: bool = False

    def rate(self, step: int, done: float) -> float:
        """Learning rate: linear warm-up, then half a cosine over the share that is `done` (0 to 1)."""
        falling = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * falling

    def done(self, step: int, seconds: float) -> float:
        """The share of the training that is behind, 1 at its end."""
        return max(step / self.steps, seconds / (60 * self.minutes))


@dataclass(frozen=True)
class Stand:
    """Where training stood after `step` steps."""

    step: int
    seconds: float
    figures: dict[str, float]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value:.5f}" for name, value in self.figures.items())
        return f"step {self.step}, {self.seconds:.0f} s, {self.step / self.seconds:.1f} steps/s: {told}"


@dataclass(frozen=True)
class Trained:
    """A copy of the network with averaged weights, and the way there."""

    net: Any
    log: tuple[Stand, ...]


def batches(images: Tensor, labels: Tensor, size: int, mirror: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end, made on the device that the tensors are on; with `mirror`, half are mirrored."""
    while True:
        order = torch.randperm(len(images), device=images.device)
        for rows in order.split(size)[: max(1, len(order) // size)]:
            x = images[rows]
            if mirror:
                x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
            yield x, labels[rows]


def fit(
    net: Any,
    loss: Callable[[Any, Tensor, Tensor], Tensor],
    data: Iterator[tuple[Tensor, Tensor]],
    recipe: Recipe,
    accelerator: Accelerator,
    figures: Callable[[Any], dict[str, float]],
) -> Trained:
    """Train `net` itself; prints a running loss and the figures of an averaged copy, `recipe.reports` times in all."""
    device = accelerator.device
    optimizer = torch.optim.AdamW(net.to(device).parameters(), lr=recipe.learning_rate, fused=device.type == "cuda")
    ready, optimizer = accelerator.prepare(net.train(), optimizer)
    called = torch.compile(ready) if recipe.compiled else ready
    ema = EMAModel(net.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    start, step, done, told = time.time(), 0, 0.0, 0.0
    running = torch.zeros((), device=device)
    log: list[Stand] = []
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, done)
        with accelerator.autocast():
            value = loss(called, *next(data))
        accelerator.backward(value)
        accelerator.clip_grad_norm_(net.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        step += 1
        running.lerp_(value.detach(), max(0.01, 1 / step))
        done = recipe.done(step, time.time() - start)
        if done >= min(1.0, told + 1 / recipe.reports):
            averaged = _averaged(net, ema)
            log.append(Stand(step, time.time() - start, {"running loss": running.item(), **figures(averaged)}))
            print(log[-1], flush=True)
            told = recipe.done(step, time.time() - start)
    return Trained(averaged, tuple(log))


def _averaged(net: Any, ema: EMAModel) -> Any:
    copy = deepcopy(net).eval()
    ema.copy_to(copy.parameters())
    return copy
