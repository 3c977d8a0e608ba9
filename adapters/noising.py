"""Forward processes of diffusion models: how a sample is noised, what the model must then predict, how one samples.

    variance preserving   x_t = √ᾱ_t x + √(1 − ᾱ_t) ε   target ε (or x, or v = √ᾱ_t ε − √(1 − ᾱ_t) x)   t = 0 ... T−1
    flow matching         x_σ = (1 − σ) x + σ ε         target ε − x                                    σ ∈ (0, 1)

A time is told as a share of the process, in [0, 1), or as the number that the model takes.  The errors of what a model
answers and of the clean sample that this implies are proportional, |answer error|² = factor · |clean error|², from
which the min-SNR weights follow (`fxprune.Timesteps`):

    target      ε        x        v          ε − x
    factor      SNR      1        SNR + 1    1 / σ²
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.errors import InputsError

Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Track: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]


class Noising(abc.ABC):
    """A forward process.  Samples are (n, ...); times (n,), as the model takes them."""

    @abc.abstractmethod
    def at(self, shares: Tensor) -> Tensor:
        """Times at shares of the process in [0, 1)."""

    @abc.abstractmethod
    def shares(self, times: Tensor) -> Tensor:
        """The inverse of `at`."""

    @abc.abstractmethod
    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio, of variances."""

    @abc.abstractmethod
    def factor(self, times: Tensor) -> Tensor:
        """Squared error of the model's answer over that of the clean sample which it implies."""

    @abc.abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noisy samples."""

    @abc.abstractmethod
    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the model should answer for the noisy samples."""

    @abc.abstractmethod
    def sample(self, predict: Predict, noise: Tensor, steps: int, track: Track) -> Tensor:
        """Clean samples, from noise, by a deterministic sampler."""


@dataclass(frozen=True)
class VariancePreserving(Noising):
    """DDPM's process, with the noise schedule of a diffusers scheduler's config; samples by DDIM.

    Source: Ho et al., NeurIPS 2020; Song et al., Denoising Diffusion Implicit Models, ICLR 2021.
    """

    config: Mapping[str, Any]

    @property
    def _steps(self) -> int:
        return int(self.config["num_train_timesteps"])

    def _scheduler(self) -> Any:
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(dict(self.config))

    def at(self, shares: Tensor) -> Tensor:
        return (shares * self._steps).long()

    def shares(self, times: Tensor) -> Tensor:
        return (times.float() + 0.5) / self._steps

    def snr(self, times: Tensor) -> Tensor:
        # A schedule rescaled to end at zero signal would give 0 / 0 in the weights.
        kept: Tensor = self._scheduler().alphas_cumprod.to(times.device)[times.long()].clamp(min=1e-8)
        return kept / (1 - kept)

    def factor(self, times: Tensor) -> Tensor:
        snr = self.snr(times)
        kind = self.config.get("prediction_type", "epsilon")
        return torch.ones_like(snr) if kind == "sample" else snr + 1 if kind == "v_prediction" else snr

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        noisy: Tensor = self._scheduler().add_noise(clean, noise, times)
        return noisy

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        kind = self.config.get("prediction_type", "epsilon")
        if kind == "sample":
            return clean
        if kind == "v_prediction":
            velocity: Tensor = self._scheduler().get_velocity(clean, noise, times)
            return velocity
        return noise

    def sample(self, predict: Predict, noise: Tensor, steps: int, track: Track) -> Tensor:
        from diffusers import DDIMScheduler

        # DDIM's default is to clip, which would ruin latents: clip only where the model's own scheduler does.
        config = {**self.config, "clip_sample": self.config.get("clip_sample", False)}
        sampler = DDIMScheduler.from_config(config)
        sampler.set_timesteps(steps)
        x = noise
        for t in track(sampler.timesteps.tolist()):
            x = sampler.step(predict(x, torch.full((len(x),), t, device=x.device)), t, x).prev_sample
        return x


@dataclass(frozen=True)
class Flow(Noising):
    """Rectified flow; the model sees σ · unit.  Samples by Euler steps.

    Source: Liu et al., Flow Straight and Fast, ICLR 2023; Esser et al., Scaling Rectified Flow Transformers, ICML 2024.
    """

    unit: float = 1000.0

    def at(self, shares: Tensor) -> Tensor:
        return shares * self.unit

    def shares(self, times: Tensor) -> Tensor:
        return times.float() / self.unit

    def snr(self, times: Tensor) -> Tensor:
        sigma = self.shares(times)
        return ((1 - sigma) / sigma).square()

    def factor(self, times: Tensor) -> Tensor:
        return self.shares(times).square().reciprocal()

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        sigma = (times / self.unit).to(clean.dtype).reshape(-1, *(1,) * (clean.dim() - 1))
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - clean

    def sample(self, predict: Predict, noise: Tensor, steps: int, track: Track) -> Tensor:
        x = noise
        for k in track(range(steps)):
            sigma = 1 - k / steps
            x = x - predict(x, torch.full((len(x),), sigma * self.unit, device=x.device, dtype=x.dtype)) / steps
        return x


def noising_of(scheduler: Any, otherwise: Noising) -> Noising:
    """The process of a diffusers scheduler; `otherwise` where there is none.

    Raises:
        InputsError: for a scheduler whose process is not known here.
    """
    if scheduler is None:
        return otherwise
    # Flow matching schedulers noise by `scale_noise`; the multistep solvers say it by their prediction type.
    if hasattr(scheduler, "scale_noise") or scheduler.config.get("prediction_type") == "flow_prediction":
        return otherwise if isinstance(otherwise, Flow) else Flow()
    if hasattr(scheduler, "alphas_cumprod"):
        return VariancePreserving(dict(scheduler.config))
    raise InputsError(f"fxprune does not know how {type(scheduler).__name__} adds noise: pass data= and loss=")
