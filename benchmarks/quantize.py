"""Prune by 40 % with legal_for=, then quantise with torchao: bytes and error of outputs, beside the dense model's.

Random weights, CPU; the error is |quantised - own| / |own| over the outputs.  It makes the table of docs/quantize.md.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import timm
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

import fxprune

CONFIGS = {
    "int8": Int8WeightOnlyConfig,
    "int4-g32": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
}


def dit() -> tuple[Any, dict[str, Any]]:
    net = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, num_layers=2, sample_size=8, in_channels=4, out_channels=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    return net, {"hidden_states": torch.randn(4, 4, 8, 8), "timestep": torch.arange(4), "class_labels": torch.arange(4)}


def unet() -> tuple[Any, dict[str, Any]]:
    net = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=16, attention_head_dim=4, cross_attention_dim=64,
    )  # fmt: skip
    text = torch.randn(2, 7, 64)
    return net, {"sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([5, 400]), "encoder_hidden_states": text}


def vit() -> tuple[Any, dict[str, Any]]:
    net = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=64, img_size=64)
    return net, {"x": torch.randn(4, 3, 64, 64)}


@torch.no_grad()
def outputs(net: Any, inputs: dict[str, Any]) -> torch.Tensor:
    out = net(**inputs)
    return out if isinstance(out, torch.Tensor) else out[0]


def measured(net: Any, inputs: dict[str, Any], legal_for: str) -> tuple[float, int]:
    quantised = copy.deepcopy(net)
    quantize_(quantised, CONFIGS[legal_for]())
    torch.save(quantised.state_dict(), buffer := io.BytesIO())
    own = outputs(net, inputs)
    return float((outputs(quantised, inputs) - own).norm() / own.norm()), buffer.tell()


def main() -> None:
    print("| model | format | dense: kB, error | pruned: kB, error | layers not taken |\n|---|---|---|---|---|")
    for make in (dit, unet, vit):
        torch.manual_seed(0)
        net, inputs = make()
        with torch.no_grad():
            for p in net.eval().parameters():
                p.add_(0.02 * torch.randn(p.shape))
        for legal_for in CONFIGS:
            small = fxprune.prune(net, "magnitude", 0.4, legal_for=legal_for, progress=False)
            (a, before), (b, after) = (measured(m, inputs, legal_for) for m in (net, small))
            left = len(fxprune.report(small).misfits)
            row = f"{before / 1e3:,.0f}, {a:.4f} | {after / 1e3:,.0f}, {b:.4f} | {left}"
            print(f"| {make.__name__} | {legal_for} | {row} |", flush=True)


if __name__ == "__main__":
    main()
