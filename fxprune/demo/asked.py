"""What a budget of parameters, of multiply-accumulates or of time costs, before any training: a row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMPipeline, UNet2DModel

import fxprune
from fxprune.demo import digits


@dataclass(frozen=True)
class Wish:
    """How a network is asked for.

    Attributes:
        of: the measure; None: nothing but the ratio is said, as in the demo's first call.
        ratio, criterion, seed: see `fxprune.prune`.
        batch: images in the forward whose time is asked for.
    """

    of: str | None
    ratio: float
    criterion: str
    seed: int
    batch: int

    def __str__(self) -> str:
        return f"ratio={self.ratio:g}" + (f', of="{self.of}"' if self.of else "")

    def granted(self, pipeline: DDPMPipeline, progress: bool) -> DDPMPipeline:
        """The pruned pipeline.

        Raises:
            BudgetError: as much cannot go.
        """
        config = pipeline.unet.config
        images = torch.zeros(self.batch, config.in_channels, config.sample_size, config.sample_size)
        timed: dict[str, Any] = {"of": self.of, "example_inputs": {"sample": images, "timestep": torch.tensor(500)}}
        own = timed if self.of else {}
        return fxprune.prune(pipeline, self.criterion, self.ratio, seed=self.seed, progress=progress, **own)


@dataclass(frozen=True)
class Asked:
    """A row: what was asked, and what came of it.

    Attributes:
        asked: the arguments of `fxprune.prune`.
        parameters, macs: shares that are gone.
        predicted: how many times as fast the plan said that it would be, by its latencies or else by its MACs.
        bound: whether that is by the MACs alone, which say at most how fast.
        speedup: how many times as fast it is; None until it is timed.
        loss: on the held-out digits.
        refused: the error, where as much cannot go; the figures are then missing.
    """

    asked: str
    parameters: float | None = None
    macs: float | None = None
    predicted: float | None = None
    bound: bool = False
    speedup: float | None = None
    loss: float | None = None
    refused: str = ""

    @property
    def cells(self) -> list[str]:
        """For a table."""
        shares = [f"{v:.1%}" if v is not None else "–" for v in (self.parameters, self.macs)]
        speeds = [f"{v:.2f}×" if v is not None else "–" for v in (self.predicted, self.speedup)]
        speeds[0] = f"≤ {speeds[0]}" if self.bound else speeds[0]
        return [f"`{self.asked}`", *shares, *speeds, self.refused or f"{self.loss:.4f}"]


HEAD = ("asked", "parameters gone", "MACs gone", "predicted speed", "measured speed", "held-out loss")


def row(wish: Wish, unet: UNet2DModel, loss: float) -> Asked:
    """The row of a network that was granted."""
    told = fxprune.report(unet)
    gone = {k: 1 - after / before for k, (before, after) in told.plan.costs.items()}
    share = None if told.timing is None else told.timing.predicted
    predicted = told.plan.speedup if share is None else 1 / (1 - share)
    return Asked(str(wish), gone["params"], gone["macs"], predicted, bound=share is None, loss=loss)


def granted(wish: Wish, pipeline: DDPMPipeline, progress: bool) -> tuple[Asked, UNet2DModel | None]:
    """The row of a wish and its network; None where as much cannot go."""
    try:
        unet = wish.granted(pipeline, progress).unet.eval()
    except fxprune.BudgetError as e:
        most = "none" if e.reachable is None else f"at most {e.reachable:.0%}"
        return Asked(str(wish), refused=f"cannot go: {most}"), None
    images = digits.load_digits_split().held_out_images
    return row(wish, unet, digits.noise_loss(unet, pipeline.scheduler, images)), unet
