"""Asked against achieved: what a plan removes, for six networks at their real sizes, ratios 0.1 ... 0.8.

    python benchmarks/budgets.py

The networks live on the meta device and the scores are random: a plan's cost depends on shapes alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fxprune

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def ddpm() -> tuple[Any, Any]:
    """google/ddpm-cifar10-32, 35.7 M parameters."""
    from ddpm_cifar10 import CONFIG
    from diffusers import UNet2DModel

    return UNet2DModel(**CONFIG), (torch.randn(1, 3, 32, 32), torch.tensor([10]))


def sd15() -> tuple[Any, Any]:
    """Stable Diffusion 1.5's UNet, 860 M parameters."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(cross_attention_dim=768)
    return model, (torch.randn(1, 4, 64, 64), torch.tensor([10]), torch.randn(1, 77, 768))


def dit() -> tuple[Any, Any]:
    """DiT-B/2, 130 M parameters."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=12, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=12
    )
    labels = {"timestep": torch.tensor([10]), "class_labels": torch.tensor([3])}
    return model, ((torch.randn(1, 4, 32, 32),), labels)


def timm_model(name: str) -> Callable[[], tuple[Any, Any]]:
    """A timm classifier at 224 pixels."""

    def make() -> tuple[Any, Any]:
        import timm

        return timm.create_model(name, pretrained=False), torch.randn(1, 3, 224, 224)

    return make


NETS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "ddpm-cifar10-32": ddpm,
    "SD-1.5 UNet": sd15,
    "DiT-B/2": dit,
    "resnet50": timm_model("resnet50"),
    "vit_base": timm_model("vit_base_patch16_224"),
    "convnext_tiny": timm_model("convnext_tiny"),
}


def achieved(graph: fxprune.ChannelGraph, scores: dict[str, Any], ratio: float, of: str) -> str:
    """The share that goes, with a star where a group norm was regrouped; or how far one can go."""
    try:
        plan = fxprune.plan(graph, scores, ratio, of)
    except fxprune.BudgetError as e:
        return f"at most {e.reachable or 0.0:.1%}"
    return f"{plan.achieved:.1%}{'*' if plan.regrouped else ''}"


def main() -> None:
    """Print a markdown table."""
    warnings.simplefilter("ignore")
    print(f"| network | of | {' | '.join(f'{r:.0%}' for r in RATIOS)} | s a plan |")
    print("|---|---|" + "---|" * (len(RATIOS) + 1))
    for name, make in NETS.items():
        with torch.device("meta"):
            model, inputs = make()
        graph = fxprune.trace(model.eval(), inputs)
        rng = np.random.default_rng(0)
        scores = {g.name: rng.random(len(g)) for g in graph.groups}
        for of in ("params", "macs"):
            start = time.perf_counter()
            row = [achieved(graph, scores, r, of) for r in RATIOS]
            seconds = (time.perf_counter() - start) / len(RATIOS)
            print(f"| {name} | {of} | {' | '.join(row)} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
