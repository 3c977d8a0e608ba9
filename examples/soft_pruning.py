"""Prune the digits DDPM softly while it trains, with its optimizer, averages and a picture of the run.

python examples/soft_pruning.py --out small_digits                 the whole run by fxprune.prune
python examples/soft_pruning.py --out small_digits --own-loop      the same method in a loop of one's own
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DDPMPipeline
from torch.utils.data import DataLoader

import fxprune
from fxprune.demo import digits
from fxprune.demo.training import training_loss


def batches(size: int) -> DataLoader[torch.Tensor]:
    """Return the training digits in shuffled batches."""
    images = digits.load_digits_split().train_images
    return DataLoader(images, size, shuffle=True, drop_last=True)  # type: ignore[arg-type]


def whole(pipeline: DDPMPipeline, ratio: float, steps: int, out: Path) -> DDPMPipeline:
    """Let fxprune train: with averaged weights, learning from the dense model, and checkpoints to go on from."""
    training = fxprune.Training(
        steps,
        after=steps // 4,
        learning_rate=5e-4,
        warmup=steps // 20,
        ema_decay=0.99,
        distill=fxprune.Distillation(output=0.5),
        checkpoint_dir=out / "checkpoints",
        checkpoint_every=200,
        picture=out / "run.png",
    )
    return fxprune.prune(pipeline, ratio=ratio, scheduler="soft", training=training, data=batches(64))


def own_loop(pipeline: DDPMPipeline, ratio: float, steps: int, out: Path) -> DDPMPipeline:
    """Train by hand; the pruner needs one call a step."""
    unet, scheduler = pipeline.unet.train(), pipeline.scheduler
    optimizer = torch.optim.AdamW(unet.parameters(), 5e-4)
    pruner = fxprune.Pruner(unet, "soft", ratio=ratio, steps=steps)
    while not pruner.done:
        for images in batches(64):
            loss = training_loss(unet, scheduler, images)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step(images, loss)
            if pruner.done:
                break
    pruner.picture(out / "run.png")
    small = pruner.finish(optimizer=optimizer)  # the optimizer goes on with the small model
    return DDPMPipeline(unet=small, scheduler=scheduler)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model and the picture.")],
    ratio: Annotated[float, typer.Option(help="Share of the parameters that goes.")] = 0.4,
    steps: Annotated[int, typer.Option(help="Steps while the masks move.")] = 400,
    by_hand: Annotated[bool, typer.Option("--own-loop", help="Train in a loop of one's own.")] = False,
) -> None:
    """Prune the digits DDPM softly, save it, and print its loss."""
    out.mkdir(parents=True, exist_ok=True)
    dense, held_out = digits.load_pipeline(), digits.load_digits_split().held_out_images
    before = digits.noise_loss(dense.unet, dense.scheduler, held_out)
    small = (own_loop if by_hand else whole)(dense, ratio, steps, out)
    typer.echo(fxprune.report(small.unet))
    after = digits.noise_loss(small.unet, small.scheduler, held_out)
    typer.echo(f"held-out loss: dense {before:.4f}, small {after:.4f}; the run is drawn in {out / 'run.png'}")
    fxprune.save(small, out / "model")


if __name__ == "__main__":
    typer.run(main)
