"""The trained networks of `untrained.py` and `recipes.py`: what prunes and trains them, and how good they are.

The digits DDPM, the emoji DDPM, LDM and DiT, and a ResNet-18 that names the digits, as they are or scaled to 16x16.
The classifiers are trained here, from any number of seeds.  The emoji networks see the images of the file that data.py
wrote, where it is there; else images that the dense network drew itself: then figures of the same network can be
compared, and levels say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import data
import nets
import tasks
import torch
from data import Split
from diffusers import DDPMPipeline, DDPMScheduler
from diffusion import conditional, noise_errors, sample
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from training import batches

import fxprune
from fxprune.demo.digits import load_pipeline

CHECKPOINTS = Path(__file__).with_name("checkpoints")
TASKS = ("digits", "ddpm", "ldm", "dit", "classifier", "classifier-16")
SHOWN = 64  # held-out images of the emoji networks
STEPS = 25  # of the sampler that draws where there are no images
CALIBRATION = 2, 64  # batches and images a batch that score the classifier
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Subject:
    """A trained network.

    Attributes:
        given: what `prune` takes: a pipeline, or the network.
        net: the network.
        example: its inputs; None: the model's family knows them.
        calibration: batches and a loss to score with, from a number of samples and a seed.
        loader: batches of a size, to train with.
        loss: to train by; None: that of the model's family.
        figures: of held-out images; "loss" is one of them.
        source: where the images come from, "real" or "drawn".
        answers: of a classifier, logits for the held-out images and their labels.
    """

    given: Any
    net: nn.Module
    example: Any
    calibration: Callable[[int, int], tuple[list[Any], Loss]]
    loader: Callable[[int], DataLoader[Any]]
    loss: Loss | None
    figures: Callable[[nn.Module], dict[str, float]]
    source: str
    answers: Callable[[nn.Module], tuple[Tensor, Tensor]] | None = None


def subject(task: str, file: Path = data.PREPARED, drawn: int = 0, weights: int = 0) -> Subject:
    """One of TASKS.

    Args:
        task: its name.
        file: what data.py wrote.
        drawn: training images to draw where that file is missing.
        weights: seed that a classifier is trained from; there is one of each of the others.
    """
    if task == "classifier-16":
        return classifier(epochs=3, side=16, seed=weights)
    return classifier(seed=weights) if task == "classifier" else diffusion(task, file, drawn)


# ---- noise prediction ---------------------------------------------------------------------------------------------


def diffusion(task: str, file: Path, drawn: int) -> Subject:
    """A network that predicts noise."""
    if task == "digits":
        given = load_pipeline()
        net, scheduler, split, source = given.unet.eval(), given.scheduler, data.load("digits"), "real"
    else:
        folder = CHECKPOINTS / task
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        net = nets.load(task, folder / ("transformer" if task == "dit" else "unet"))
        given = DDPMPipeline(net, scheduler)  # of the DiT, too, whose own pipeline needs an autoencoder
        split, source = _emoji(task, net, scheduler, file, drawn)
    labels = split.held_out_labels if conditional(net) else None

    def figures(net: nn.Module) -> dict[str, float]:
        repeats = 4 if task == "digits" else 2
        errors, _ = noise_errors(net.eval(), scheduler, split.held_out, labels, repeats)
        return {"loss": float(errors.mean())}

    def calibration(samples: int, seed: int) -> tuple[list[Any], Loss]:
        return fxprune.calibration(given, samples, seed=seed)

    def loader(size: int) -> DataLoader[Any]:
        pairs = list(zip(split.train, split.train_labels, strict=True))
        images: Any = list(split.train) if labels is None else pairs
        return DataLoader(images, size, shuffle=True, drop_last=True)

    return Subject(given, net, None, calibration, loader, None, figures, source)


def _emoji(task: str, net: Any, scheduler: DDPMScheduler, file: Path, drawn: int) -> tuple[Split, str]:
    if file.exists():
        split = data.load(file)
        if task == "ldm":
            split = tasks.latent(split, nets.load("vae", CHECKPOINTS / "vae" / "vae"), 0).split
        rows = torch.randperm(len(split.held_out), generator=torch.Generator().manual_seed(0))[:SHOWN]
        own = split.held_out[rows], split.held_out_labels[rows]
        return Split(split.train, split.train_labels, *own, split.categories, split.mirrored), "real"
    held_out = _drawn(task, net, scheduler, SHOWN, 1234)
    return Split(*_drawn(task, net, scheduler, drawn, 5678), *held_out, (), False), "drawn"


def _drawn(task: str, net: Any, scheduler: DDPMScheduler, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of a network's own, and their classes in turn; kept for the next time."""
    labels = torch.arange(n) % int(net.config.get("num_embeds_ada_norm") or 1)
    side, held = net.config.sample_size, data.CACHE / f"drawn-{task}-{n}-{STEPS}-{seed}.pt"
    noise = torch.randn(n, net.config.in_channels, side, side, generator=torch.Generator().manual_seed(seed))
    if not n:
        return noise, labels
    if not held.exists():
        data.CACHE.mkdir(exist_ok=True)
        parts = zip(noise.split(SHOWN), labels.split(SHOWN), strict=True)
        own = [sample(net, scheduler, x, y if conditional(net) else None, STEPS) for x, y in parts]
        torch.save(torch.cat(own), held)
    return torch.load(held), labels


# ---- a classifier -------------------------------------------------------------------------------------------------


def classifier(epochs: int = 8, size: int = 64, device: str = "cpu", side: int = 8, seed: int = 0) -> Subject:
    """torchvision's ResNet-18 with the first layer for small images, trained on the digits on the CPU."""
    net: Any = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
    return fitted(net, "resnet18" if side == 8 else f"resnet18-{side}px", epochs, size, device, side, seed)


def fitted(
    net: nn.Module, name: str, epochs: int, size: int, device: str = "cpu", side: int = 8, seed: int = 0
) -> Subject:
    """A network that names the digits, trained on the CPU from a seed the first time that it is asked for."""
    plain = _scaled(data.load("digits"), side)
    split = plain.to(device)
    held = data.CACHE / f"{name}-{epochs}-0.0{f'-{seed}' if seed else ''}.pt"
    if not held.exists():
        data.CACHE.mkdir(exist_ok=True)
        torch.manual_seed(seed)
        net.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        _fit(net, plain, epochs * (len(split.train) // size), size)  # the same weights on any device
        part = held.with_suffix(f".{os.getpid()}")  # several processes may train it at once
        torch.save(net.state_dict(), part)
        part.replace(held)
    net.load_state_dict(torch.load(held, map_location=device))
    net.to(device).eval()

    @torch.no_grad()
    def answers(net: nn.Module) -> tuple[Tensor, Tensor]:
        return net.eval()(split.held_out), split.held_out_labels

    def figures(net: nn.Module) -> dict[str, float]:
        logits, labels = answers(net)
        right = logits.argmax(1) == labels
        return {"loss": float(F.cross_entropy(logits, labels)), "accuracy": float(right.float().mean())}

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    def calibration(samples: int, seed: int) -> tuple[list[Any], Loss]:
        """Training images, as many whatever the number of samples."""
        n, each = CALIBRATION
        rows = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(seed))[: n * each]
        return list(zip(split.train[rows].split(each), split.train_labels[rows].split(each), strict=True)), loss

    def loader(size: int) -> DataLoader[Any]:
        pairs = list(zip(split.train, split.train_labels, strict=True))
        return DataLoader(pairs, size, shuffle=True, drop_last=True)

    return Subject(net, net, split.held_out[:1], calibration, loader, loss, figures, "real", answers)


def _scaled(split: Split, side: int) -> Split:
    """Images of another size."""
    if split.train.shape[-1] == side:
        return split
    train, held_out = (F.interpolate(x, size=side, mode="bilinear") for x in (split.train, split.held_out))
    return replace(split, train=train, held_out=held_out)


def _fit(net: nn.Module, split: Split, steps: int, size: int) -> None:
    feed = batches(split.train, split.train_labels, size, mirror=False)
    optimizer = torch.optim.AdamW(net.train().parameters(), 1e-3)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        images, labels = next(feed)
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
