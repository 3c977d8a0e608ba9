"""Train the small DDPM of the digits demo, or evaluate the one that the package ships.

python examples/train_digits.py --out my_digits     trains and saves half-precision EMA weights
python examples/train_digits.py --evaluate          prints the figures of the shipped weights
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from fxprune.demo import digits, training
from fxprune.demo.training import TrainOptions

REPORT_EVERY = 500


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


def save(unet: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    """Write a diffusers pipeline folder with half-precision weights."""
    DDPMPipeline(unet=deepcopy(unet).half(), scheduler=scheduler).save_pretrained(out)


def train(options: TrainOptions, seed: int, out: Path) -> None:
    """Train, and save the averaged weights at each report."""
    set_seed(seed)
    accelerator, split = Accelerator(), digits.load_digits_split()
    scheduler, unet = build_scheduler(), build_unet()
    for step in training.train(unet, scheduler, split.train_images, options, accelerator):
        if (step.number % REPORT_EVERY == 0 or step.number == options.steps) and accelerator.is_main_process:
            model = step.averaged()
            save(model, scheduler, out)
            held_out = digits.noise_loss(model, scheduler, split.held_out_images)
            typer.echo(f"step {step.number}: training loss {step.loss:.4f}, held-out loss {held_out:.4f}")


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
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    only_evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Evaluate the saved weights, train nothing.")
    ] = False,
    grid: Annotated[Path | None, typer.Option(help="PNG file for the drawn samples.")] = None,
) -> None:
    """Train the digits DDPM into a folder, and print its figures."""
    if not only_evaluate:
        if out is None:  # no default: training must not overwrite the shipped weights
            raise typer.BadParameter("name the folder to save into with --out")
        train(TrainOptions(steps=steps), seed, out)
    evaluate(out or digits.CHECKPOINT, grid)


if __name__ == "__main__":
    typer.run(main)
