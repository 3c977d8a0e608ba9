"""The trained networks that sweep.py prunes, each with its images, its loss and its measures, on one device."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data
import nets
import tasks
import torch
from data import CACHE, Split
from diffusers import DDPMPipeline, DDPMScheduler
from diffusion import conditional, training_loss
from measure import Bench, costs, energy, likeness, losses, size, widths
from subjects import classifier
from torch import Tensor, nn
from training import batches

from fxprune.demo.digits import load_pipeline

CASES = ("digits", "ddpm", "ldm", "dit", "classifier")


@dataclass(frozen=True)
class Measuring:
    """How much is measured.

    Attributes:
        samples: drawn by each network.
        repeats: draws of noise and time for each held-out image.
        watched: held-out images for the curve of the loss.
        speed: time forwards, which tells something on a machine that is not shared only.
    """

    samples: int = 128
    repeats: int = 8
    watched: int = 10**9
    speed: bool = True


@dataclass(frozen=True)
class Case:
    """A trained network.

    Attributes:
        given: what `prune` takes with nothing else said: a pipeline, or the network.
        dense: the network.
        split: its images, on the device.
        loss: of a network and a batch (images, labels).
        own: whether `given` tells inputs and loss; else they are passed.
        labelled: whether the loss needs labels.
        example: inputs of one image.
        watched: the held-out loss, for the curve.
        measured: all figures of a network.
    """

    given: Any
    dense: nn.Module
    split: Split
    loss: Callable[..., Tensor]
    own: bool
    labelled: bool
    example: Callable[[], Any]
    watched: Callable[[nn.Module], float]
    measured: Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Feed:
    """Shuffled batches of an epoch, as often as it is iterated; with labels, or images alone."""

    split: Split
    size: int
    labelled: bool

    def __iter__(self) -> Iterator[Any]:
        s = self.split
        every = batches(s.train, s.train_labels, self.size, s.mirrored)
        for _ in range(max(1, len(s.train) // self.size)):
            images, labels = next(every)
            yield (images, labels) if self.labelled else images


def case(task: str, device: str, file: Path, checkpoints: Path, how: Measuring) -> Case:
    """One of CASES."""
    return _classifier(device) if task == "classifier" else _diffusion(task, device, file, checkpoints, how)


# ---- noise prediction -------------------------------------------------------------------------------------------


def _diffusion(task: str, device: str, file: Path, checkpoints: Path, how: Measuring) -> Case:
    bench, given = bench_of(task, device, file, checkpoints, how.samples)
    labelled = conditional(bench.dense)

    def loss(net: nn.Module, batch: Any, **which: Any) -> Tensor:
        return training_loss(net, bench.scheduler, batch[0], batch[1] if labelled else None, **which)

    def measured(net: nn.Module) -> dict[str, Any]:
        drawn, joules = energy(lambda: bench.drawn(net))
        return {
            **losses(net, bench, how.repeats),
            **likeness(drawn, _drawn_by_dense(task, device, bench), bench),
            **costs(net, bench, speed=how.speed),
            "energy": None if joules is None or not how.speed else joules / how.samples,
            "widths": widths(net, bench.dense),
        }

    def example() -> dict[str, Tensor]:
        image, label = bench.split.train[:1], bench.split.train_labels[:1]
        first = "hidden_states" if task == "dit" else "sample"
        classes = {"class_labels": label} if labelled else {}
        return {first: image, "timestep": torch.tensor([10], device=device), **classes}

    def watched(net: nn.Module) -> float:
        return losses(net, bench, 2, how.watched)["loss"]

    own = given is not bench.dense  # the network alone does not know its noise schedule
    return Case(given, bench.dense, bench.split, loss, own, labelled, example, watched, measured)


def bench_of(task: str, device: str, file: Path, checkpoints: Path, samples: int) -> tuple[Bench, Any]:
    """What to measure a network and its pruned copies with, and what `prune` takes."""
    generator = torch.Generator().manual_seed(1234)
    split = data.load("digits" if task == "digits" else file).to(device)
    names = checkpoints / ("digits_classifier" if task == "digits" else "classifier")
    if task == "digits":
        given: Any = load_pipeline()
        dense, scheduler = given.unet.eval().to(device), given.scheduler
    else:
        dense = nets.load(task, checkpoints / task / ("transformer" if task == "dit" else "unet")).to(device)
        scheduler = DDPMScheduler.from_pretrained(checkpoints / task / "scheduler")
        given = dense if task == "dit" else DDPMPipeline(dense, scheduler)  # a DiT's pipeline needs an autoencoder
    decode, images = tasks.as_it_is, split.held_out
    if task == "ldm":
        latents = tasks.latent(split, nets.load("vae", checkpoints / "vae" / "vae").to(device), 0)
        split, decode = latents.split, latents.decode
    labels = None
    if conditional(dense):
        labels = torch.randint(len(split.categories), (samples,), generator=generator).to(device)
    noise = torch.randn((samples, *split.train.shape[1:]), generator=generator).to(device)
    named = nets.load("classifier", names / "classifier").to(device)
    return Bench(dense, scheduler, split, named, images, noise, labels, decode), given


def _drawn_by_dense(task: str, device: str, bench: Bench) -> Tensor:
    """The dense network's samples, drawn once for all runs of the same weights."""
    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in bench.dense.parameters())
    file = CACHE / f"{task}-{zlib.crc32(weights):08x}-{len(bench.noise)}-{device}.pt"
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")  # several processes may draw at once
        torch.save(bench.drawn(bench.dense), part)
        part.replace(file)
    found: Tensor = torch.load(file)
    return found


# ---- a classifier -----------------------------------------------------------------------------------------------


def _classifier(device: str) -> Case:
    it, split = classifier(device=device), data.load("digits").to(device)
    assert it.loss is not None

    def measured(net: nn.Module) -> dict[str, Any]:
        sizes = {"parameters": size(net, "params", {}), "macs": size(net, "macs", {"x": it.example})}
        return {**it.figures(net), **sizes, "widths": widths(net, it.net)}

    def watched(net: nn.Module) -> float:
        return it.figures(net)["loss"]

    return Case(it.net, it.net, split, it.loss, False, True, lambda: it.example, watched, measured)
