"""Peak memory of pruning diffusion models at their real size, each in a process of its own, weights included.

    python benchmarks/memory.py [--only NAME ...] [--samples N]

Random weights of the released shapes: SD 1.5 (its UNet, 860 M parameters), DiT-XL/2 (750 M) and SDXL's UNet in bfloat16
(2.6 B).  Every row is `fxprune.prune(model, CRITERION, 0.4, inplace=True)` with its proof, at the model's own
resolution: with nothing but the criterion's name, so that the model draws its own calibration samples.  "half" is SD
1.5's UNet at half its widths, for machines with less memory than the whole one takes.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

from support import in_own_process

CASES = {
    "sd15-magnitude": ("sd15", "magnitude", 64, 12.0),
    "dit-xl-magnitude": ("dit-xl", "magnitude", 32, 12.0),
    "sd15-half-taylor": ("sd15-half", "taylor", 64, 7.0),
    "sd15-half-gradflow": ("sd15-half", "gradflow", 64, 11.0),
    "sd15-taylor": ("sd15", "taylor", 64, 7.0),
    "sd15-gradflow": ("sd15", "gradflow", 64, 11.0),
    "dit-xl-gradflow": ("dit-xl", "gradflow", 32, 10.0),
    "sdxl-taylor": ("sdxl", "taylor", 128, 11.0),
}


def build(name: str, side: int) -> Any:
    """The released shape, random weights, latents of `side` × `side`."""
    import diffusers
    import torch

    if name.startswith("sd15"):
        widths = (160, 320, 640, 640) if name == "sd15-half" else (320, 640, 1280, 1280)
        return diffusers.UNet2DConditionModel(sample_size=side, cross_attention_dim=768, block_out_channels=widths)
    if name == "sdxl":
        # In bfloat16 from the start: in float32 it would take twice what pruning takes.
        torch.set_default_dtype(torch.bfloat16)
        try:
            return diffusers.UNet2DConditionModel(
                sample_size=side, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, attention_head_dim=(5, 10, 20),
                addition_embed_type="text_time", addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            )  # fmt: skip
        finally:
            torch.set_default_dtype(torch.float32)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=side,
        patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip


def measure(case: str, side: int | None, samples: int) -> dict[str, Any]:
    """Seconds, and the largest resident memory of this process in GiB."""
    import torch

    import fxprune

    name, criterion, own_side, limit = CASES[case]
    net = build(name, side or own_side)
    dense = sum(p.numel() for p in net.parameters())
    built = peak()
    start = time.perf_counter()
    small = fxprune.prune(net, criterion, 0.4, inplace=True, progress=False, samples=samples)
    seconds = time.perf_counter() - start
    left = sum(p.numel() for p in small.parameters())
    return {
        "parameters": dense,
        "dtype": str(next(small.parameters()).dtype).removeprefix("torch."),
        "latents": side or own_side,
        "removed": 1 - left / dense,
        "check": fxprune.report(small).checks[0].ok,
        "scoring": fxprune.report(small).scoring,
        "seconds": seconds,
        "steps": dict(fxprune.report(small).seconds),
        "weights_gib": dense * next(net.parameters()).element_size() / 2**30,
        "built_gib": built,
        "peak_gib": peak(),
        "limit_gib": limit,
        "threads": torch.get_num_threads(),
    }


def peak() -> float:
    """The largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--one", choices=list(CASES))
    parser.add_argument("--samples", type=int, default=8, help="that the model draws itself")
    parser.add_argument("--side", type=int, help="of the latents, instead of the model's own")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.side, args.samples)))
        return
    options = ["--samples", str(args.samples), *(["--side", str(args.side)] if args.side else [])]
    print("| case | parameters | dtype | latents | removed | seconds | peak | limit |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for case in args.only:
        row = in_own_process(__file__, case, *options)
        if isinstance(row, str):
            print(f"| {case} | {row} |", flush=True)
            continue
        print(
            f"| {case} | {row['parameters']:,} | {row['dtype']} | {row['latents']}² | {row['removed']:.1%} | "
            f"{row['seconds']:.0f} | {row['peak_gib']:.1f} GiB | {row['limit_gib']:.0f} GiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
