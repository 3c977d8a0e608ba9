"""Sampling with a pruned pipeline beside the dense one: images from the same noise, and the time it takes.

    python benchmarks/quality/sampling.py prune --data FILE --out DIR [--ratio 0.47] [--steps 1200]
    python benchmarks/quality/sampling.py time --data FILE --out DIR [--picture FILE]

"prune" takes time (or MACs) off the emoji DDPM while it trains, and saves the pipeline; "time" loads it, draws with
both pipelines in turns, on a machine that should be quiet, and prints one JSON object with their held-out losses.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import data as emoji
import nets
import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler
from diffusers.utils import make_image_grid
from diffusion import noise_errors
from measure import size
from PIL import Image
from training import batches

import fxprune

DENSE = Path(__file__).with_name("checkpoints") / "ddpm"
HELD_OUT = 128  # images


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prune", "time"))
    parser.add_argument("--data", default=emoji.PREPARED, help="the file that data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pruned pipeline")
    parser.add_argument("--of", choices=("latency", "macs"), default="latency", help="what --ratio is a share of")
    parser.add_argument("--ratio", type=float, default=0.47)
    parser.add_argument("--round-to", type=int, default=16)
    parser.add_argument("--scope", default="isomorphic", help="how channels are ranked; see fxprune.prune")
    parser.add_argument("--blocks", type=float, default=0.15, help="share that goes first, in whole blocks")
    parser.add_argument("--steps", type=int, default=1200, help="of training; the masks move in the first quarter")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--draws", type=int, default=25, help="DDIM steps")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="where the images go, dense above pruned")
    return parser.parse_args()


def pipeline() -> DDIMPipeline:
    """The dense one."""
    noises = DDPMScheduler.from_pretrained(DENSE / "scheduler")
    return DDIMPipeline(nets.load("ddpm", DENSE / "unet"), DDIMScheduler.from_config(noises.config))


def prune(chosen: argparse.Namespace) -> None:
    """Prune softly while training, and save."""
    torch.manual_seed(0)
    split = emoji.load(chosen.data)
    feed = batches(split.train, split.train_labels, chosen.batch, split.mirrored)
    stream = [next(feed)[0] for _ in range(chosen.steps)]
    soft = chosen.steps // 4
    training = fxprune.Training(soft, after=chosen.steps - soft, learning_rate=3e-4, warmup=20, anneal=True)
    image = torch.zeros(chosen.batch, 3, 32, 32)
    example = {"sample": image, "timestep": torch.full((chosen.batch,), 500)}
    more: dict[str, Any] = {"of": chosen.of, "example_inputs": example}
    pipe, ratio = pipeline(), chosen.ratio
    if chosen.blocks:
        pipe = fxprune.prune(pipe, "taylor", chosen.blocks, granularity="block", data=stream[:16], **more)
        ratio = 1 - (1 - ratio) / (1 - fxprune.report(pipe.unet).plan.achieved)
    more |= {"round_to": chosen.round_to, "scope": chosen.scope, "training": training}
    small = fxprune.prune(pipe, "taylor", ratio, scheduler="soft", data=stream, **more)
    fxprune.save_pipeline(small, chosen.out)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Draw the same images with both, in turns; the fastest turn of each counts."""
    pipes = {"dense": pipeline(), "pruned": fxprune.load_pipeline(chosen.out)}
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    drawn: dict[str, Any] = {}
    for _ in range(chosen.turns):
        for name, pipe in pipes.items():
            pipe.set_progress_bar_config(disable=True)
            start = time.perf_counter()
            given = {"batch_size": chosen.images, "num_inference_steps": chosen.draws, "output_type": "np"}
            drawn[name] = pipe(generator=torch.Generator().manual_seed(0), **given).images
            seconds[name].append(time.perf_counter() - start)
    if chosen.picture:
        both = [
            Image.fromarray((x * 255).round().astype(np.uint8)).resize((96, 96))
            for x in np.concatenate([*drawn.values()])
        ]
        make_image_grid(both, 2 * chosen.images // 8, 8).save(chosen.picture)
    image = {"sample": torch.zeros(1, 3, 32, 32), "timestep": torch.tensor([10])}
    held_out = emoji.load(chosen.data).held_out[:HELD_OUT]
    loss = {name: noise_errors(p.unet, p.scheduler, held_out, None, 2)[0].mean().item() for name, p in pipes.items()}
    costs = {name: {of: size(pipe.unet, of, image) for of in ("params", "macs")} for name, pipe in pipes.items()}
    return {
        "seconds": {name: min(s) for name, s in seconds.items()},
        "speedup": min(seconds["dense"]) / min(seconds["pruned"]),
        "removed": {k: 1 - costs["pruned"][k] / costs["dense"][k] for k in costs["dense"]},
        "loss": loss,
        "images": chosen.images,
        "draws": chosen.draws,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Prune, or time."""
    chosen = options()
    if chosen.what == "prune":
        prune(chosen)
    else:
        print(json.dumps(measure(chosen)))


if __name__ == "__main__":
    main()
