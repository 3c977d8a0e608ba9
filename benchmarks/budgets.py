"""Asked against achieved: what a plan removes, for six networks at their real sizes, ratios 0.1 ... 0.8.

    python benchmarks/budgets.py

The networks live on the meta device and the scores are random: a plan's cost depends on shapes alone.  Two more tables:
published sizes of the pruned DDPM asked for with target=, and how often a second the cost of a candidate is counted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fxprune
from fxprune.planning.cost_model import CostModel

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


# What is left of ddpm-cifar10 (35.7 M parameters, 6.1 G MACs) in Fang et al., Structural Pruning for Diffusion Models,
# NeurIPS 2023.
PUBLISHED = {"params": 19.8e6, "macs": 3.4e9}


def targets(graph: fxprune.ChannelGraph, scores: dict[str, Any]) -> None:
    """Print what plans with `target=` end at."""
    print("\n| ddpm-cifar10-32: target= | of | dense | stays | off by |\n|---|---|---|---|---|")
    for of, target in PUBLISHED.items():
        plan = fxprune.plan(graph, scores, target=target, of=of)
        before, after = plan.costs[of]
        print(f"| {target:.3g} | {of} | {before:.4g} | {after:.5g} | {after / target - 1:+.2%} |", flush=True)


def evaluations(name: str, graph: fxprune.ChannelGraph, count: int = 2000) -> str:
    """A row: how many candidates a second are costed, by measure."""
    rng = np.random.default_rng(0)
    lost = [np.array([rng.integers(len(g)) for g in graph.groups], float) for _ in range(64)]
    cost = CostModel(graph)
    cells = []
    for of in ("params", "macs"):
        start = time.perf_counter()
        for i in range(count):
            cost.of(of, lost[i % len(lost)])
        cells.append(f"{count / (time.perf_counter() - start):,.0f}")
    return f"| {name} | {len(graph.groups)} | {' | '.join(cells)} |"


def main() -> None:
    """Print markdown tables."""
    warnings.simplefilter("ignore")
    print(f"| network | of | {' | '.join(f'{r:.0%}' for r in RATIOS)} | s a plan |")
    print("|---|---|" + "---|" * (len(RATIOS) + 1))
    rates, ddpm_graph = [], None
    for name, make in NETS.items():
        with torch.device("meta"):
            model, inputs = make()
        graph = fxprune.trace(model.eval(), inputs)
        scores = random_scores(graph)
        for of in ("params", "macs"):
            start = time.perf_counter()
            row = [achieved(graph, scores, r, of) for r in RATIOS]
            seconds = (time.perf_counter() - start) / len(RATIOS)
            print(f"| {name} | {of} | {' | '.join(row)} | {seconds:.2f} |", flush=True)
        rates.append(evaluations(name, graph))
        ddpm_graph = graph if make is ddpm else ddpm_graph
    assert ddpm_graph is not None
    targets(ddpm_graph, random_scores(ddpm_graph))
    print("\n| costs counted a second | groups | params | macs |\n|---|---|---|---|")
    print("\n".join(rates))


def random_scores(graph: fxprune.ChannelGraph) -> dict[str, Any]:
    """One number a channel, the same each time."""
    rng = np.random.default_rng(0)
    return {g.name: rng.random(len(g)) for g in graph.groups}


if __name__ == "__main__":
    main()
