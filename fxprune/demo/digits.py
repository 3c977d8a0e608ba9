"""Data, sampler and figures of the digits demo: a small DDPM on scikit-learn's 8x8 handwritten digits.

Images are float tensors of shape (N, 1, 8, 8) in [-1, 1], background -1, throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import make_image_grid
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from torch import Tensor

CHECKPOINT = Path(__file__).parent / "digits_ddpm"
HELD_OUT = 297
CLASSES = 10


@dataclass(frozen=True)
class DigitsSplit:
    """Images and labels the model was trained on, and those that it has never seen."""

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


@dataclass(frozen=True)
class SampleOptions:
    """How the digits are drawn: DDIM without added noise, so that the seed alone decides the images."""

    count: int = 256
    steps: int = 50
    seed: int = 0


@cache
def load_digits_split() -> DigitsSplit:
    """Return the one fixed, stratified split: 1,500 digits to train on, 297 held out."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels, test_size=HELD_OUT, stratify=labels, random_state=0)
    train, held_out, train_labels, held_out_labels = map(torch.from_numpy, parts)
    return DigitsSplit(train, train_labels, held_out, held_out_labels)


def load_pipeline(folder: Path | str = CHECKPOINT) -> DDPMPipeline:
    """Load the shipped pipeline (or one saved in ``folder``) in single precision, which is diffusers' default."""
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off for the block, and put the module back into its mode after it."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def sample(unet: UNet2DModel, scheduler: SchedulerMixin, options: SampleOptions | None = None) -> Tensor:
    """Draw images with DDIM; the noise schedule is that of ``scheduler``."""
    options = options or SampleOptions()
    pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler.from_config(scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(options.seed)
    with evaluating(unet):
        drawn = pipeline(options.count, generator, num_inference_steps=options.steps, output_type="np").images
    return torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1


@torch.no_grad()
def noise_loss(unet: UNet2DModel, scheduler: SchedulerMixin, images: Tensor, repeats: int = 8, seed: int = 0) -> float:
    """Mean squared error of the predicted noise, on ``repeats`` seeded draws of noise and timestep per image."""
    generator = torch.Generator().manual_seed(seed)
    clean = images.repeat(repeats, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator)
    steps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator)
    noisy = scheduler.add_noise(clean, noise, steps)
    batches = zip(torch.split(noisy, 256), torch.split(steps, 256), strict=True)
    with evaluating(unet):
        predicted = torch.cat([unet(x.to(unet.device), t.to(unet.device)).sample.cpu() for x, t in batches])
    return float(torch.nn.functional.mse_loss(predicted, noise))


@cache
def digit_classifier() -> Pipeline:
    """Return a classifier fitted on the training digits only.

    Kernel logistic regression: its features vanish far from the data, so that noise is not called a digit.
    """
    split = load_digits_split()
    features = Nystroem(gamma=0.05, n_components=1000, random_state=0)
    model = make_pipeline(features, LogisticRegression(C=100, max_iter=1000))
    return model.fit(split.train_images.flatten(1).numpy(), split.train_labels.numpy())


def class_probabilities(images: Tensor) -> Tensor:
    """Return the classifier's probabilities, of shape (N, 10)."""
    return torch.from_numpy(digit_classifier().predict_proba(images.flatten(1).cpu().numpy()))


def classifier_accuracy() -> float:
    """Share of the held-out digits that the classifier names correctly."""
    split = load_digits_split()
    named = class_probabilities(split.held_out_images).argmax(1)
    return float((named == split.held_out_labels).double().mean())


def class_counts(images: Tensor, threshold: float = 0.9) -> list[int]:
    """Per class, how many images the classifier names with a probability of at least ``threshold``."""
    confidence, named = class_probabilities(images).max(1)
    return torch.bincount(named[confidence >= threshold], minlength=CLASSES).tolist()


def confidence_share(images: Tensor, threshold: float = 0.9) -> tuple[float, int]:
    """Return the share of images named with confidence, and how many of the ten classes occur among those."""
    counts = class_counts(images, threshold)
    return sum(counts) / len(images), sum(count > 0 for count in counts)


def write_grid(images: Tensor, path: Path | str, columns: int = 16, scale: int = 6) -> None:
    """Write the images as one PNG, dark ink on white; a last row that is not full is left out."""
    grey = ((1 - images.clamp(-1, 1)) * 127.5).round().byte()
    framed = torch.nn.functional.pad(grey, (1, 1, 1, 1), value=255)
    large = framed.repeat_interleave(scale, 2).repeat_interleave(scale, 3).squeeze(1)
    rows = len(images) // columns
    tiles = [Image.fromarray(tile) for tile in large[: rows * columns].cpu().numpy()]
    make_image_grid(tiles, rows, columns).convert("L").save(path)
