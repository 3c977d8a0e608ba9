"""What each channel's removal does to a trained network, and what the criteria said about it.

    python benchmarks/quality/removal.py --task digits [--channels 400] [--images 64] [--seeds 0,1,2]
    python benchmarks/quality/removal.py --task ddpm --dense DIR [--data FILE]

The weights of one channel after the other are set to zero; ΔL and Δ‖g‖² are what that does to the loss and to its
gradient's squared norm, of the same images, noise and times that the criteria score by.  Prints Spearman's correlation
of the scores with both, over channels drawn at random, and the mean ΔL of the tenth that a criterion takes first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import data
import nets
import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusion import predict
from methods import METHODS
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor, nn

import fxprune
from fxprune.demo.digits import load_pipeline

CRITERIA = ("random", "magnitude", "taylor", "gradflow", "gradflow preserving")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("digits", "ddpm"), required=True)
    parser.add_argument("--dense", type=Path, help="folder that train.py wrote (not for digits)")
    parser.add_argument("--data", default=data.PREPARED, help="the file that data.py wrote (not for digits)")
    parser.add_argument("--channels", type=int, default=400, help="as many are measured")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2", help="of the images, the noise, the times and the channels")
    return parser.parse_args()


def dense(chosen: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The network and its scheduler."""
    if chosen.task == "digits":
        pipe = load_pipeline()
        return pipe.unet.eval(), pipe.scheduler
    return nets.load("ddpm", chosen.dense / "unet"), DDPMScheduler.from_pretrained(chosen.dense / "scheduler")


def loss(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Of noisy images at given times."""
    noisy, noise, times = batch
    return nn.functional.mse_loss(predict(net, noisy, times, None), noise)


def state(net: nn.Module, batch: Any) -> tuple[float, float]:
    """The loss, and the squared norm of its gradient."""
    value = loss(net, batch)
    used = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, used, allow_unused=True)
    return value.item(), sum(float(g.square().sum()) for g in gradients if g is not None)


def without(net: nn.Module, group: fxprune.Group, channel: int, batch: Any) -> tuple[float, float]:
    """The state while all weights that go with a channel are zero."""
    tensors = dict(net.named_parameters())
    kept = {s.tensor: tensors[s.tensor].detach().clone() for s in group.slices if s.tensor in tensors}
    with torch.no_grad():
        for s in group.slices:
            if s.tensor in tensors:
                tensors[s.tensor].index_fill_(s.axis, torch.as_tensor(s.positions[channel]), 0.0)
    try:
        return state(net, batch)
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                tensors[name].copy_(value)


def one(chosen: argparse.Namespace, seed: int) -> np.ndarray[Any, Any]:
    """Per criterion: correlation with ΔL, with Δ‖g‖², and mean ΔL of the first tenth; last, that of all channels."""
    torch.manual_seed(seed)
    net, scheduler = dense(chosen)
    split = data.load("digits" if chosen.task == "digits" else chosen.data)
    clean = split.train[torch.randperm(len(split.train))[: chosen.images]]
    noise, times = torch.randn_like(clean), torch.randint(scheduler.config.num_train_timesteps, (len(clean),))
    batch = scheduler.add_noise(clean, noise, times), noise, times
    graph = fxprune.trace(net, {"sample": clean[:2], "timestep": times[:2]})
    every = [(group, c) for group in graph.groups for c in range(len(group))]
    drawn = [every[i] for i in torch.randperm(len(every))[: chosen.channels].tolist()]
    base = np.array(state(net, batch))
    changes = np.array([without(net, *at, batch) for at in track(drawn, f"{chosen.task}, seed {seed}")]) - base
    rows = []
    for name in CRITERIA:
        values = fxprune.score(graph, net, METHODS[name].criterion, data=[batch], loss=loss, seed=seed).values
        scores = np.array([values[group.name][c] for group, c in drawn])
        first = scores.argsort()[: max(1, len(drawn) // 10)]
        rows.append(
            [*(spearmanr(scores, change).statistic for change in changes.T), changes[first, 0].mean() / base[0]]
        )
    together = spearmanr(*changes.T).statistic
    return np.array([*rows, [together, np.nan, changes[:, 0].mean() / base[0]]])


def main() -> None:
    """Print a table of means over the seeds, ± half their range."""
    chosen = options()
    measured = np.stack([one(chosen, seed) for seed in map(int, chosen.seeds.split(","))])
    middle, spread = measured.mean(0), (measured.max(0) - measured.min(0)) / 2
    print(
        "| criterion | correlation with ΔL | with Δ‖g‖² | ΔL / L of the tenth that goes first |\n|---|---:|---:|---:|"
    )
    for name, m, s in zip((*CRITERIA, "all channels"), middle, spread, strict=True):
        cells = [f"{m[0]:+.2f} ± {s[0]:.2f}", f"{m[1]:+.2f} ± {s[1]:.2f}", f"{m[2]:.2%} ± {s[2]:.2%}"]
        print(f"| {name} | {' | '.join(cells)} |")
    print("all channels: the first figure is the correlation of ΔL with Δ‖g‖²")


if __name__ == "__main__":
    main()
