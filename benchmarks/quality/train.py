"""Train one dense network of the quality benchmark, within a time limit.

    python benchmarks/quality/train.py --model ddpm|vae|ldm|dit|classifier --out DIR [--data FILE] [--minutes M]

`--model ldm` needs `--vae DIR`, the folder of a trained autoencoder.  DIR gets averaged weights in half precision and
their config, in subfolders as diffusers' pipelines have them, `samples.png` and `training.json`.  `--data digits` is
for the digits' classifier.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import data
import nets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from data import Split
from tasks import Autoencoding, Classification, Diffusion, Task, latent
from torchvision.utils import save_image
from training import Recipe, batches, fit

RATES = {"classifier": 2e-3, "dit": 5e-4}  # 1e-3 for the others


def build(options: argparse.Namespace, split: Split) -> tuple[Any, Task]:
    """The untrained network and what it is trained for."""
    classes, device = len(split.categories), split.train.device
    shown = len(split.held_out) if device.type == "cuda" else 16  # a look at all takes minutes on a CPU
    match options.model:
        case "ddpm":
            return nets.ddpm(), Diffusion(split, nets.schedule(), shown)
        case "dit":
            return nets.dit(classes), Diffusion(split, nets.schedule(), shown)
        case "ldm":
            return nets.ldm(), latent(split, nets.load("vae", options.vae / "vae").to(device), shown)
        case "vae":
            return nets.vae(), Autoencoding(split, shown)
        case _:
            stages = 3 if split.train.shape[-1] >= 32 else 2
            return nets.Classifier(split.train.shape[1], classes, stages=stages), Classification(split)


def write(net: Any, task: Task, out: Path, drawn: int, record: dict[str, Any]) -> None:
    """Weights as they are loaded again (in half precision), a picture, and how it came about."""
    task.save(net, out)
    if (images := task.draw(net, drawn)) is not None:
        save_image(images, out / "samples.png", nrow=8, normalize=True, value_range=(-1, 1))
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(nets.CLASSES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default=data.PREPARED, help="the file that data.py writes, or `digits`")
    parser.add_argument("--vae", type=Path, help="folder that --model vae wrote")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="stop after so many, if earlier")
    parser.add_argument("--batch", type=int, default=Recipe.batch_size)
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--drawn", type=int, default=64, help="samples in samples.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="autocast; `no` still uses TF32")
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    if chosen.model == "ldm" and chosen.vae is None:
        parser.error("--model ldm needs --vae DIR; train one with --model vae --out DIR")
    return chosen


def main() -> None:
    """Train and write."""
    chosen = options()
    set_seed(chosen.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    accelerator = Accelerator(cpu=chosen.device == "cpu", mixed_precision=chosen.precision)
    net, task = build(chosen, data.load(chosen.data).to(accelerator.device))
    recipe = Recipe(
        minutes=chosen.minutes,
        steps=chosen.steps,
        batch_size=chosen.batch,
        learning_rate=chosen.rate or RATES.get(chosen.model, Recipe.learning_rate),
        compiled=chosen.compile,
    )
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{chosen.model}: {parameters:,} parameters on {accelerator.device}, {recipe}", flush=True)
    feed = batches(task.split.train, task.split.train_labels, recipe.batch_size, task.split.mirrored)
    done = fit(net, task.loss, feed, recipe, accelerator, task.figures)
    chosen.out.mkdir(parents=True, exist_ok=True)
    record = {
        "model": chosen.model,
        "parameters": parameters,
        "recipe": asdict(recipe),
        "seed": chosen.seed,
        "precision": chosen.precision,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "log": [asdict(stand) for stand in done.log],
    }
    write(done.net, task, chosen.out, chosen.drawn, record)


if __name__ == "__main__":
    main()
