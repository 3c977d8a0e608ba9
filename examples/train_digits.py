"""Train the small DDPM of the digits demo, or evaluate the one that the package ships.

python examples/train_digits.py --out my_digits     trains and saves half-precision EMA weights
python examples/train_digits.py --evaluate          prints the figures of the shipped weights
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fxprune.demo import digits


@dataclass(frozen=True)
class TrainOptions:
    """The recipe; the defaults are those of the shipped weights."""

    steps: int = 7_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 300
    ema_decay: float = 0.999
    seed: int = 0
    report_every: int = 500


def build_unet() -> UNet2DModel:
    """Return an untrained DDPM U-Net for 8x8 images: two resolutions, attention on the lower one."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=None,
        dropout=0.1,
    )


def build_scheduler() -> DDPMScheduler:
    """Return the noise schedule: cosine, which keeps more of a small image's signal than a linear one."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=True)


def training_step(unet: torch.nn.Module, scheduler: DDPMScheduler, clean: Tensor) -> Tensor:
    """Return the noise-prediction loss of one batch."""
    noise = torch.randn_like(clean)
    steps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
    predicted = unet(scheduler.add_noise(clean, noise, steps), steps).sample
    return torch.nn.functional.mse_loss(predicted, noise)


def endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """Yield batches of images epoch after epoch."""
    while True:
        for (images,) in loader:
            yield images


def averaged(unet: UNet2DModel, ema: EMAModel) -> UNet2DModel:
    """Return a copy of the U-Net with the averaged weights."""
    copy = deepcopy(unet)
    ema.copy_to(copy.parameters())
    return copy.eval()


def save(unet: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    """Write a diffusers pipeline folder with half-precision weights."""
    DDPMPipeline(unet=deepcopy(unet).half(), scheduler=scheduler).save_pretrained(out)


def train(options: TrainOptions, out: Path) -> None:
    """Train, and save the averaged weights at each report."""
    set_seed(options.seed)
    accelerator = Accelerator()
    split = digits.load_digits_split()
    scheduler, unet = build_scheduler(), build_unet()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=options.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, options.warmup, options.steps)
    loader = DataLoader(TensorDataset(split.train_images), options.batch_size, shuffle=True, drop_last=True)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    ema = EMAModel(unet.parameters(), decay=options.ema_decay, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    running = math.nan
    for step, clean in zip(range(1, options.steps + 1), endless(loader), strict=False):
        loss = training_step(unet, scheduler, clean)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        if (step % options.report_every == 0 or step == options.steps) and accelerator.is_main_process:
            model = averaged(accelerator.unwrap_model(unet), ema)
            save(model, scheduler, out)
            held_out = digits.noise_loss(model, scheduler, split.held_out_images)
            typer.echo(f"step {step}: training loss {running:.4f}, held-out loss {held_out:.4f}")


def evaluate(folder: Path, grid: Path | None) -> None:
    """Print the figures of the weights in ``folder``, and draw its samples into ``grid``."""
    pipeline, split = digits.load_pipeline(folder), digits.load_digits_split()
    images = digits.sample(pipeline.unet, pipeline.scheduler)
    share, classes = digits.confidence_share(images)
    real_share, _ = digits.confidence_share(split.held_out_images)
    noise_share, _ = digits.confidence_share(torch.randn_like(images).clamp(-1, 1))
    typer.echo(f"parameters: {pipeline.unet.num_parameters():,}")
    for name, part in (("training", split.train_images), ("held-out", split.held_out_images)):
        typer.echo(f"{name} noise-prediction loss: {digits.noise_loss(pipeline.unet, pipeline.scheduler, part):.4f}")
    typer.echo(f"classifier accuracy on held-out digits: {digits.classifier_accuracy():.4f}")
    typer.echo(f"confident share: samples {share:.3f}, held-out digits {real_share:.3f}, noise {noise_share:.3f}")
    typer.echo(f"classes among the confident samples: {classes}, counts {digits.class_counts(images)}")
    if grid is not None:
        digits.write_grid(images, grid)


def main(
    out: Annotated[
        Path | None, typer.Option(help="Pipeline folder; without it, --evaluate takes the shipped one.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = TrainOptions.steps,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = TrainOptions.seed,
    only_evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Evaluate the saved weights, train nothing.")
    ] = False,
    grid: Annotated[Path | None, typer.Option(help="PNG file for the drawn samples.")] = None,
) -> None:
    """Train the digits DDPM into a folder, and print its figures."""
    if not only_evaluate:
        if out is None:  # no default: training must not overwrite the shipped weights
            raise typer.BadParameter("name the folder to save into with --out")
        train(TrainOptions(steps=steps, seed=seed), out)
    evaluate(out or digits.CHECKPOINT, grid)


if __name__ == "__main__":
    typer.run(main)
