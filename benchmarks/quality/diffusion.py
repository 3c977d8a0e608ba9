"""Noise prediction and sampling, the same for pixels and latents, UNets and transformers, with classes or without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor, nn

CHUNK = 256


def conditional(net: Any) -> bool:
    """Whether the network takes class labels."""
    config = net.config
    return bool(config.get("num_class_embeds") or config.get("num_embeds_ada_norm"))


def predict(net: nn.Module, noisy: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
    """The predicted noise; `labels` are None for a network without classes."""
    given = {} if labels is None else {"class_labels": labels}
    noise: Tensor = net(noisy, timestep=times, **given).sample
    return noise


def training_loss(
    net: nn.Module,
    scheduler: SchedulerMixin,
    clean: Tensor,
    labels: Tensor | None,
    gamma: float | None = None,
    time: int | None = None,
) -> Tensor:
    """Mean squared error of the predicted noise, at random times (unless one is given), which weigh min(SNR, γ) / SNR
    if γ is given."""
    noise = torch.randn_like(clean)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
    if time is not None:
        times = torch.full_like(times, time)
    predicted = predict(net, scheduler.add_noise(clean, noise, times), times, labels).float()
    if gamma is None:
        return nn.functional.mse_loss(predicted, noise)
    kept = scheduler.alphas_cumprod.to(clean.device)[times]
    weights = (gamma * (1 - kept) / kept).clamp(max=1)
    return ((predicted - noise).square().flatten(1).mean(1) * weights).sum() / weights.sum()


@torch.no_grad()
def noise_errors(
    net: nn.Module, scheduler: SchedulerMixin, clean: Tensor, labels: Tensor | None, repeats: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Squared error of every one of `repeats` seeded draws an image, and the times of these draws.

    Each image's draws are spread evenly over time; the draws do not depend on the device.

    Returns:
        errors (n · repeats,), mean over an image's elements; times (n · repeats,), both on the CPU.
    """
    total = scheduler.config.num_train_timesteps
    errors, drawn = [], []
    generator = torch.Generator().manual_seed(seed)
    for turn in range(repeats):
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        times = ((turn + torch.rand(len(clean), generator=generator)) / repeats * total).long().clamp(max=total - 1)
        for x, e, t, y in _chunks(clean, noise, times.to(clean.device), labels):
            predicted = predict(net, scheduler.add_noise(x, e, t), t, y)
            errors.append((predicted - e).square().flatten(1).mean(1).cpu())
        drawn.append(times)
    return torch.cat(errors), torch.cat(drawn)


@torch.no_grad()
def sample(
    net: nn.Module, scheduler: SchedulerMixin, noise: Tensor, labels: Tensor | None = None, steps: int = 50
) -> Tensor:
    """Draw from the given noise by DDIM without added noise, so that noise and labels alone decide the images."""
    sampler = DDIMScheduler.from_config(scheduler.config)
    sampler.set_timesteps(steps)
    drawn = []
    for x, y in _chunks(noise, labels):
        for t in sampler.timesteps.tolist():
            times = torch.full((len(x),), t, device=x.device)
            x = sampler.step(predict(net, x, times, y), t, x).prev_sample
        drawn.append(x)
    return torch.cat(drawn)


def _chunks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    n = next(len(t) for t in tensors if t is not None)
    for first in range(0, n, CHUNK):
        yield tuple(None if t is None else t[first : first + CHUNK] for t in tensors)
