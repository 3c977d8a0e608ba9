"""What the hand-off from masked to dense costs in loss, and what masks cost in time.

    python benchmarks/hand_off.py [--steps N] [--only digits|ddpm-cifar10|dit-s]

loss   of the masked model just before `finish()`, and of the dense one just after, on the same batch and noise; beside
       it the naive way: zero the producers of the channels that go, so that norms still count the zeros, then cut.
time   of a training step with masks of ones, and with masks on their way, over a step without (medians, interleaved).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ddpm_cifar10 import unet
from diffusers import DiTTransformer2DModel
from torch import nn

import fxprune
from fxprune.demo import digits

DIT_S: dict[str, Any] = {
    "num_attention_heads": 6,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 12,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
Loss = Callable[[nn.Module, Any], torch.Tensor]


def nets() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]]:
    """Name -> (builder, shape of a batch, whether it takes class labels)."""
    return {
        "digits": (lambda: digits.load_pipeline().unet, (16, 1, 8, 8), False),
        "ddpm-cifar10": (lambda: unet(), (4, 3, 32, 32), False),
        "dit-s": (lambda: woken(DiTTransformer2DModel(**DIT_S)), (2, 4, 32, 32), True),
    }


def woken(net: nn.Module) -> nn.Module:
    """Random weights in place of zeros, so that every block of a fresh net does something."""
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return net


def loss_of(classes: bool) -> Loss:
    """Noise prediction with everything drawn from the batch's own seed."""

    def loss(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        labels = {"class_labels": batch["labels"]} if classes else {}
        out = model(batch["noisy"], timestep=batch["time"], **labels).sample
        return (out[:, : batch["noise"].shape[1]] - batch["noise"]).square().mean()

    return loss


def batch_of(shape: tuple[int, ...], seed: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "noisy": torch.randn(shape, generator=rng),
        "noise": torch.randn(shape, generator=rng),
        "time": torch.randint(1000, (shape[0],), generator=rng),
        "labels": torch.randint(1000, (shape[0],), generator=rng),
    }


def naive(model: nn.Module, graph: fxprune.ChannelGraph, plan: fxprune.Plan) -> nn.Module:
    """The model with the producers of the removed channels zeroed: output rows of weights, biases, scale and shift."""
    zeroed = copy.deepcopy(model)
    named = dict(zeroed.named_parameters())
    with torch.no_grad():
        for name, gone in plan.removed.items():
            for s in graph.group(name).slices:
                if s.axis == 0 and s.tensor in named:
                    named[s.tensor][torch.from_numpy(s.positions[list(gone)].reshape(-1))] = 0
    return zeroed


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, batch: Any) -> float:
    start = time.perf_counter()
    loss(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def hand_off(name: str, steps: int) -> str:
    """A soft run of `steps` steps at 40 %, and the losses around its end."""
    build, shape, classes = nets()[name]
    torch.manual_seed(0)
    model, loss = build().train(), loss_of(classes)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    pruner = fxprune.Pruner(model, "soft", "magnitude", 0.4, steps=steps, loss=loss)
    for k in range(steps):
        train_step(model, optimizer, loss, batch_of(shape, k))
        pruner.step()
    model.eval()
    test = batch_of(shape, 10**6)
    with torch.no_grad():
        masked = float(loss(model, test))
    small = pruner.finish()
    assert pruner.flow.plan is not None
    with torch.no_grad():
        dense, zeroed = float(loss(small, test)), float(loss(naive(model, pruner.graph, pruner.flow.plan), test))
    exact = "exact norms" if not pruner.flow.plan.regrouped else f"{len(pruner.flow.plan.regrouped)} norms regrouped"
    return (
        f"{name:14s} masked {masked:.6f}  dense {dense:.6f}  relative gap {abs(masked - dense) / dense:.1e}  "
        f"producers zeroed {zeroed:.6f}: gap {abs(zeroed - dense) / dense:.1e}  ({exact})"
    )


def overhead(name: str, repeats: int) -> str:
    """Step time with masks over step time without, interleaved in one process."""
    build, shape, classes = nets()[name]
    torch.manual_seed(0)
    loss, batch = loss_of(classes), batch_of(shape, 0)
    models = [build().train() for _ in range(3)]
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-4) for m in models]
    graph = fxprune.trace(models[1])
    for m, values in ((models[1], (1.0, 1.0)), (models[2], (0.3, 1.0))):
        masks = fxprune.masking.live.LiveMasks(m, graph, check=False)
        masks.set(np.random.default_rng(0).uniform(*values, int(graph.component.max()) + 1))
    times: list[list[float]] = [[], [], []]
    for k in range(repeats + 1):
        for m, o, t in zip(models, optimizers, times, strict=True):
            seconds = train_step(m, o, loss, batch)
            if k:
                t.append(seconds)
    plain, ones, moving = (statistics.median(t) for t in times)
    return (
        f"{name:14s} step with ones {ones / plain:.3f}x, with masks on their way {moving / plain:.3f}x of {plain:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=list(nets()))
    options = parser.parse_args()
    for name in [options.only] if options.only else nets():
        print(hand_off(name, options.steps), flush=True)
        print(overhead(name, options.repeats), flush=True)


if __name__ == "__main__":
    main()
