"""What each network is trained for: its images, its loss, its figures on held-out images, what it draws and saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import nets
import torch
from data import Split
from diffusers import AutoencoderKL, DDPMScheduler
from diffusion import conditional, noise_errors, sample, training_loss
from torch import Tensor, nn
from torch.nn import functional as F

KL_WEIGHT = 5e-4  # of the mean over a latent's elements: enough to keep the latents near to normal


class Task(Protocol):
    """`net` is the network in training or a copy with averaged weights; images (n, C, H, W), labels (n,)."""

    split: Split

    def loss(self, net: Any, images: Tensor, labels: Tensor) -> Tensor:
        """To be minimised."""

    def figures(self, net: Any) -> dict[str, float]:
        """Named figures on the held-out images."""

    def draw(self, net: Any, n: int) -> Tensor | None:
        """n images in [-1, 1] to look at."""

    def save(self, net: Any, out: Path) -> None:
        """Write everything that is needed to use the network."""


def as_it_is(images: Tensor) -> Tensor:
    """The decoder of pixel models."""
    return images


@dataclass(frozen=True)
class Diffusion:
    """Noise prediction, of images or of latents, which `decode` turns into images; figures are of `shown` images."""

    split: Split
    scheduler: DDPMScheduler
    shown: int
    decode: Callable[[Tensor], Tensor] = as_it_is
    beside: Callable[[Path], None] | None = None

    def loss(self, net: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Of random times."""
        return training_loss(net, self.scheduler, images, labels if conditional(net) else None)

    def figures(self, net: Any) -> dict[str, float]:
        """The loss, of seeded noise at times spread evenly; on as many training images, too, to see overfitting."""
        s, n = self.split, self.shown
        parts = {"held-out": (s.held_out[:n], s.held_out_labels[:n]), "training": (s.train[:n], s.train_labels[:n])}
        return {f"{name} loss": self._error(net, *part) for name, part in parts.items()}

    def _error(self, net: Any, images: Tensor, labels: Tensor) -> float:
        errors, _ = noise_errors(net, self.scheduler, images, labels if conditional(net) else None, repeats=4)
        return float(errors.mean())

    def draw(self, net: Any, n: int) -> Tensor:
        """Seeded samples, the classes in turn where there are any."""
        device = self.split.train.device
        noise = torch.randn(n, *self.split.train.shape[1:], generator=torch.Generator().manual_seed(0))
        labels = (torch.arange(n) * len(self.split.categories) // n).to(device) if conditional(net) else None
        return self.decode(sample(net, self.scheduler, noise.to(device), labels))

    def save(self, net: Any, out: Path) -> None:
        """In folders as diffusers' pipelines have them."""
        nets.save(net, out / ("unet" if hasattr(net, "conv_in") else "transformer"))
        self.scheduler.save_pretrained(out / "scheduler")
        if self.beside:
            self.beside(out)


def latent(split: Split, vae: AutoencoderKL, shown: int) -> Diffusion:
    """Diffusion of the autoencoder's latents, encoded once; the autoencoder is saved beside the UNet."""

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        parts = [vae.encode(x).latent_dist.mode() for x in images.split(256)]
        return torch.cat(parts) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        parts = (latents / vae.config.scaling_factor).split(256)
        return torch.cat([vae.decode(z).sample for z in parts]).clamp(-1, 1)

    # A mirrored image's latent is not the mirrored latent: encode both, and train without mirroring.
    train = torch.cat([encode(split.train), encode(split.train.flip(3))])
    encoded = replace(
        split, train=train, train_labels=split.train_labels.repeat(2), held_out=encode(split.held_out), mirrored=False
    )
    return Diffusion(encoded, nets.schedule(clip=False), shown, decode, lambda out: nets.save(vae, out / "vae"))


@dataclass(frozen=True)
class Autoencoding:
    """Reconstruction, absolute and squared error alike, with a light Kullback-Leibler term; figures as above."""

    split: Split
    shown: int

    def loss(self, net: AutoencoderKL, images: Tensor, labels: Tensor) -> Tensor:
        """Latents are drawn from the posterior."""
        posterior = net.encode(images).latent_dist
        rebuilt = net.decode(posterior.sample()).sample.float()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return F.l1_loss(rebuilt, images) + F.mse_loss(rebuilt, images) + KL_WEIGHT * divergence

    @torch.no_grad()
    def figures(self, net: AutoencoderKL) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB, and the latents' deviation."""
        images = self.split.held_out[: self.shown]
        latents = net.encode(images).latent_dist.mode()
        error = F.mse_loss(net.decode(latents).sample.clamp(-1, 1), images)
        return {"held-out PSNR": float(10 * torch.log10(4 / error)), "latent deviation": float(latents.std())}

    @torch.no_grad()
    def draw(self, net: AutoencoderKL, n: int) -> Tensor:
        """Held-out images, each followed by itself after the way through the latents."""
        shown = self.split.held_out[: n // 2]
        return torch.stack([shown, net(shown).sample.clamp(-1, 1)], 1).flatten(0, 1)

    def save(self, net: AutoencoderKL, out: Path) -> None:
        """With the factor that gives the latents unit variance in the config."""
        net.register_to_config(scaling_factor=1 / self.figures(net)["latent deviation"])
        nets.save(net, out / "vae")


@dataclass(frozen=True)
class Classification:
    """Categories, with smoothed labels, from images moved by up to a pixel or so."""

    split: Split

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(net(_moved(images)).float(), labels, label_smoothing=0.1)

    @torch.no_grad()
    def figures(self, net: nn.Module) -> dict[str, float]:
        """The share named correctly."""
        right = net(self.split.held_out).argmax(1) == self.split.held_out_labels
        return {"held-out accuracy": float(right.float().mean())}

    def draw(self, net: nn.Module, n: int) -> None:
        """Nothing."""

    def save(self, net: Any, out: Path) -> None:
        """The network alone."""
        nets.save(net, out / "classifier")


def _moved(images: Tensor) -> Tensor:
    """Every image moved by its own random offset of up to a sixteenth of its side, white (or empty) moving in."""
    turn = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    turn[:, :, 2] = (torch.rand(len(images), 2, device=images.device) - 0.5) / 4
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
