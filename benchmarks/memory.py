"""Peak memory of pruning diffusion models at their real size, each in a process of its own, weights included.

    python benchmarks/memory.py [--only NAME ...] [--bfloat16]

Random weights of the released shapes: SD 1.5 (its UNet, 860 M parameters) and DiT-XL/2 (750 M).  "magnitude" is
`fxprune.prune(model, "magnitude", 0.4, inplace=True)` with its proof, at the model's own resolution.  "gradflow" is the
finite-difference variant under gradient checkpointing, on one latent image, which the script draws at random
(it takes three backward passes; drawing samples would take ten forwards more and no more memory).  "half" is the same
UNet at half its widths, for machines with less memory than the whole one takes.
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
    "sd15-half-gradflow": ("sd15-half", "gradflow", 64, 20.0),
    "sd15-gradflow": ("sd15", "gradflow", 64, 20.0),
    "dit-xl-gradflow": ("dit-xl", "gradflow", 32, 20.0),
}


def build(name: str, side: int) -> Any:
    """The released shape, random weights, latents of `side` × `side`."""
    import diffusers

    if name.startswith("sd15"):
        widths = (160, 320, 640, 640) if name == "sd15-half" else (320, 640, 1280, 1280)
        return diffusers.UNet2DConditionModel(sample_size=side, cross_attention_dim=768, block_out_channels=widths)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=side,
        patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip


def measure(case: str, bfloat16: bool, side: int | None) -> dict[str, Any]:
    """Seconds, and the largest resident memory of this process in GiB."""
    import torch

    import fxprune
    from fxprune.criteria.gradflow import GradFlow

    name, criterion, own_side, limit = CASES[case]
    net = build(name, side or own_side)
    net = net.bfloat16() if bfloat16 else net
    dense = sum(p.numel() for p in net.parameters())
    built = peak()
    options: dict[str, Any] = {}
    if criterion == "gradflow":
        net.enable_gradient_checkpointing()
        options = {"data": [one_batch(net)], "loss": lambda model, batch: model(**batch).sample.square().mean()}
    how = GradFlow("finite_difference") if criterion == "gradflow" else criterion
    start = time.perf_counter()
    small = fxprune.prune(net, how, 0.4, inplace=True, progress=False, **options)
    seconds = time.perf_counter() - start
    left = sum(p.numel() for p in small.parameters())
    return {
        "parameters": dense,
        "dtype": str(next(small.parameters()).dtype).removeprefix("torch."),
        "latents": side or own_side,
        "removed": 1 - left / dense,
        "check": fxprune.report(small).checks[0].ok,
        "seconds": seconds,
        "steps": dict(fxprune.report(small).seconds),
        "weights_gib": dense * next(net.parameters()).element_size() / 2**30,
        "built_gib": built,
        "peak_gib": peak(),
        "limit_gib": limit,
        "threads": torch.get_num_threads(),
    }


def one_batch(net: Any) -> dict[str, Any]:
    """The adapter's example inputs: one latent image at the model's own size, with its conditions."""
    from fxprune.adapter import find_adapter

    example: dict[str, Any] = dict(find_adapter(net).example_inputs(net))  # type: ignore[arg-type]
    return example


def peak() -> float:
    """The largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--one", choices=list(CASES))
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--side", type=int, help="of the latents, instead of the model's own")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.bfloat16, args.side)))
        return
    options = [*(["--bfloat16"] if args.bfloat16 else []), *(["--side", str(args.side)] if args.side else [])]
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
