"""What each channel's removal does to a trained network, and what the criteria said about it.

    python benchmarks/quality/removal.py --task digits [--channels 400] [--images 64] [--seeds 0,1,2]
    python benchmarks/quality/removal.py --task ddpm [--data FILE] --channels 300 --images 32

The weights of one channel after the other are set to zero; ΔL and Δ‖g‖² are what that does to the loss and to its
gradient's squared norm, of the same images, noise and times that the criteria score by.  Prints Spearman's correlation
of the scores with both, over channels drawn at random, and the mean ΔL of the tenth that a criterion takes first; then
the same of ΔL with Δ‖g‖², and over all channels.
"""

from __future__ import annotations

import argparse
from typing import Any

import data
import numpy as np
import sampling
import torch
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
    parser.add_argument("--data", default=data.PREPARED, help="the file that data.py wrote (not for digits)")
    parser.add_argument("--channels", type=int, default=400, help="as many are measured")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2", help="of the images, the noise, the times and the channels")
    return parser.parse_args()


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
    """Per criterion, and last of ΔL itself: correlation with ΔL, with Δ‖g‖², and mean ΔL / L of what goes first."""
    torch.manual_seed(seed)
    pipe = load_pipeline() if chosen.task == "digits" else sampling.pipeline()
    net = pipe.unet.eval()
    split = data.load("digits" if chosen.task == "digits" else chosen.data)
    clean = split.train[torch.randperm(len(split.train))[: chosen.images]]
    noise, times = torch.randn_like(clean), torch.randint(pipe.scheduler.config.num_train_timesteps, (len(clean),))
    batch = pipe.scheduler.add_noise(clean, noise, times), noise, times
    graph = fxprune.trace(net, {"sample": clean[:2], "timestep": times[:2]})
    every = [(group, c) for group in graph.groups for c in range(len(group))]
    drawn = [every[i] for i in torch.randperm(len(every))[: chosen.channels].tolist()]
    base = np.array(state(net, batch))
    changes = np.array([without(net, *at, batch) for at in track(drawn, f"{chosen.task}, seed {seed}")]) - base

    def row(scores: np.ndarray[Any, Any], first: int) -> list[float]:
        correlations = [float(spearmanr(scores, change).statistic) for change in changes.T]
        return [*correlations, float(changes[scores.argsort()[:first], 0].mean() / base[0])]

    rows = []
    for name in CRITERIA:
        values = fxprune.score(graph, net, METHODS[name].criterion, data=[batch], loss=loss, seed=seed).values
        rows.append(row(np.array([values[group.name][c] for group, c in drawn]), max(1, len(drawn) // 10)))
    return np.array([*rows, row(changes[:, 0], len(drawn))])


def main() -> None:
    """Print a table of means over the seeds, ± half their range."""
    chosen = options()
    measured = np.stack([one(chosen, seed) for seed in map(int, chosen.seeds.split(","))])
    middle, spread = measured.mean(0), (measured.max(0) - measured.min(0)) / 2
    print("| score | correlation with ΔL | with Δ‖g‖² | ΔL / L of the tenth that goes first |")
    print("|---|---:|---:|---:|")
    for name, m, s in zip((*CRITERIA, "ΔL itself (all channels)"), middle, spread, strict=True):
        cells = [f"{m[0]:+.2f} ± {s[0]:.2f}", f"{m[1]:+.2f} ± {s[1]:.2f}", f"{m[2]:.2%} ± {s[2]:.2%}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
