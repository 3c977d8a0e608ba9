"""The training loop of the digits demo: from scratch in examples/train_digits.py, and after pruning in the demo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class TrainOptions:
    """The recipe; the defaults are those of the shipped weights."""

    steps: int = 7_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 300
    ema_decay: float = 0.999
    clip: float = 1.0


@dataclass(frozen=True)
class Step:
    """Where training stands: `loss` is a running mean, `averaged` makes a copy of the model with averaged weights."""

    number: int
    loss: float
    averaged: Callable[[], UNet2DModel]


def training_loss(unet: torch.nn.Module, scheduler: SchedulerMixin, clean: Tensor) -> Tensor:
    """Return the noise-prediction loss of one batch."""
    noise = torch.randn_like(clean)
    steps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
    predicted = unet(scheduler.add_noise(clean, noise, steps), steps).sample
    return torch.nn.functional.mse_loss(predicted, noise)


def train(
    unet: UNet2DModel, scheduler: SchedulerMixin, images: Tensor, options: TrainOptions, accelerator: Accelerator
) -> Iterator[Step]:
    """Train `unet` itself, and yield after every step.

    AdamW, a cosine schedule with warm-up, clipped gradients, an exponential average of the weights. All randomness is
    drawn from torch's global generator: seed it first.
    """
    optimizer = torch.optim.AdamW(unet.parameters(), lr=options.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, options.warmup, options.steps)
    loader = DataLoader(TensorDataset(images), options.batch_size, shuffle=True, drop_last=True)
    net, optimizer, loader, schedule = accelerator.prepare(unet.train(), optimizer, loader, schedule)
    ema = EMAModel(net.parameters(), decay=options.ema_decay, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    running = math.nan
    for number, clean in zip(range(1, options.steps + 1), _endless(loader), strict=False):
        loss = training_loss(net, scheduler, clean)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        yield Step(number, running, lambda: _averaged(accelerator.unwrap_model(net), ema))


def _endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    while True:
        for (images,) in loader:
            yield images


def _averaged(unet: UNet2DModel, ema: EMAModel) -> UNet2DModel:
    copy = deepcopy(unet)
    ema.copy_to(copy.parameters())
    return copy.eval()
