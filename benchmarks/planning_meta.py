"""Planning very large networks on the meta device: a ViT-g-sized one (1 B) and an SDXL-UNet-sized one (2.6 B).

    python benchmarks/planning_meta.py

Each runs in a process of its own; scores are random, since meta tensors have no values.  Reported: seconds for trace
and analysis, plan, rewrite; peak memory; share removed.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

from support import in_own_process


def vit_giant() -> tuple[Any, Any]:
    """timm's ViT-giant at 1 B parameters."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model("vit_giant_patch14_224", pretrained=False)
        return model.eval(), torch.randn(1, 3, 224, 224)


def sdxl() -> tuple[Any, Any]:
    """SDXL's UNet, 2.6 B parameters."""
    import torch
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    }
    with torch.device("meta"):
        model = UNet2DConditionModel(**config).eval()
        inputs = {
            "sample": torch.randn(1, 4, 128, 128),
            "timestep": torch.tensor([10]),
            "encoder_hidden_states": torch.randn(1, 77, 2048),
            "added_cond_kwargs": {"text_embeds": torch.randn(1, 1280), "time_ids": torch.zeros(1, 6)},
        }
    return model, inputs


NETS: dict[str, Callable[[], tuple[Any, Any]]] = {"ViT-g (meta)": vit_giant, "SDXL UNet (meta)": sdxl}


def measure(name: str, ratio: float) -> dict[str, Any]:
    """Trace, plan and rewrite one network on the meta device."""
    import numpy as np

    import fxprune

    model, inputs = NETS[name]()
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    graph = fxprune.trace(model, inputs)
    traced = time.perf_counter()
    plan = fxprune.plan(graph, {g.name: rng.random(len(g)) for g in graph.groups}, ratio)
    planned = time.perf_counter()
    small = fxprune.rewrite(model, graph, plan).model
    done = time.perf_counter()
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "after": sum(p.numel() for p in small.parameters()),
        "trace_s": traced - start,
        "plan_s": planned - traced,
        "rewrite_s": done - planned,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Measure every network and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--one", choices=list(NETS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.one, options.ratio)))
        return
    print("| network | parameters | removed | trace s | plan s | rewrite s | peak GB |\n|---|---|---|---|---|---|---|")
    for name in NETS:
        r = in_own_process(__file__, name, "--ratio", str(options.ratio))
        if isinstance(r, str):
            print(f"| {name} | failed: {r} |")
            continue
        print(
            f"| {name} | {r['params'] / 1e6:,.0f} M | {1 - r['after'] / r['params']:.1%} | {r['trace_s']:.1f} "
            f"| {r['plan_s']:.1f} | {r['rewrite_s']:.1f} | {r['peak_gb']:.2f} |"
        )


if __name__ == "__main__":
    main()
