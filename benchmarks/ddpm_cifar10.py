"""Pruning the google/ddpm-cifar10-32 configuration (35.7 M parameters, random weights): time, memory, budget.

    python benchmarks/ddpm_cifar10.py            # a table, fxprune beside Torch-Pruning, each in a process of its own

Rows: fxprune with magnitude (trace + analysis + plan + rewrite, without scoring and verification), fxprune with
gradflow at batch 8 (peak memory), and Torch-Pruning's BasePruner as its diffusion example uses it.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from typing import Any

from support import in_own_process

CONFIG: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def unet() -> Any:
    """The UNet at full size, random weights, zero-initialised layers made random too."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(**CONFIG).eval()


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _macs(model: Any) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 32, 32), torch.tensor([10]))
    return counter.get_total_flops() / 2


def run_fxprune(criterion: str, ratio: float) -> dict[str, Any]:
    """Prune with fxprune; `planning_s` leaves scoring and verification out."""
    import fxprune

    model = unet()
    before, macs = _count(model), _macs(model)
    base = _peak_gb()
    start = time.perf_counter()
    small = fxprune.prune(model, criterion, ratio, samples=8, progress=False)
    wall = time.perf_counter() - start
    seconds = fxprune.report(small).seconds
    planning = sum(v for k, v in seconds.items() if k in ("trace", "plan", "rewrite"))
    return {
        "planning_s": planning,
        "wall_s": wall,
        "peak_gb": _peak_gb(),
        "before_gb": base,
        "removed": 1 - _count(small) / before,
        "macs_removed": 1 - _macs(small) / macs,
    }


def run_torch_pruning(ratio: float) -> dict[str, Any]:
    """Prune with Torch-Pruning as its README's diffusion example does (output layer ignored)."""
    import torch
    import torch_pruning as tp

    model = unet()
    for p in model.parameters():
        p.requires_grad_(True)
    before, macs = _count(model), _macs(model)
    base = _peak_gb()
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model,
        {"sample": torch.randn(1, 3, 32, 32), "timestep": torch.tensor([10])},
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.conv_out],
    )
    pruner.step()
    wall = time.perf_counter() - start
    from diffusers.models.resnet import Downsample2D, Upsample2D

    for m in model.modules():
        if isinstance(m, (Upsample2D, Downsample2D)):
            m.channels = m.conv.in_channels
            m.out_channels = m.conv.out_channels
    return {
        "planning_s": wall,
        "wall_s": wall,
        "peak_gb": _peak_gb(),
        "before_gb": base,
        "removed": 1 - _count(model) / before,
        "macs_removed": 1 - _macs(model) / macs,
    }


RUNS = {
    "fxprune magnitude": lambda ratio: run_fxprune("magnitude", ratio),
    "fxprune gradflow": lambda ratio: run_fxprune("gradflow", ratio),
    "Torch-Pruning magnitude": run_torch_pruning,
}


def main() -> None:
    """Run every row in its own process and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(RUNS[options.one](options.ratio)))
        return
    print(f"asked: {options.ratio:.0%} of the parameters (Torch-Pruning: of the channels)\n")
    print("| run | planning s | wall s | peak GB | of it before | parameters removed | MACs removed |")
    print("|---|---|---|---|---|---|---|")
    for name in RUNS:
        r = in_own_process(__file__, name, "--ratio", str(options.ratio))
        if isinstance(r, str):
            print(f"| {name} | failed: {r} |")
            continue
        print(
            f"| {name} | {r['planning_s']:.1f} | {r['wall_s']:.1f} | {r['peak_gb']:.2f} | {r['before_gb']:.2f} "
            f"| {r['removed']:.1%} | {r['macs_removed']:.1%} |"
        )


if __name__ == "__main__":
    main()
