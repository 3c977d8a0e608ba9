"""A quarter of the parameters off without any training: `python benchmarks/quality/training_free.py`

    --tasks digits,ddpm,dit,vit   --ratio 0.25   --batches 8   --size 16   --seeds 0   --together 1
    --weights 0   --select gradflow

Channels are chosen by a criterion; then the rest is left as it is ("cut"), or corrected layer by layer by
`Obs(select=...)` on the same training images ("obs").  Told are the held-out loss and its rise over the dense
network's, of a classifier with its standard error over the images, and how far its answers moved (the KL divergence);
each row is one call of `fxprune.prune`.  "vit" is torchvision's VisionTransformer, trained on the digits on the CPU,
once for each of `--weights`.  Rows are appended to `--out` (JSON lines); `subjects.py` says what the figures are
measured on.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data
import tables
import torch
from subjects import Subject, fitted, subject
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

import fxprune
from fxprune.criteria.obs import Obs

TASKS = ("digits", "ddpm", "dit", "vit")
OUT = Path(__file__).with_name("training_free.jsonl")


def vit(seed: int) -> Subject:
    """A small transformer that names the digits."""
    torch.manual_seed(0)
    net = VisionTransformer(8, 2, num_layers=4, num_heads=8, hidden_dim=64, mlp_dim=128, num_classes=10)
    net.conv_proj = nn.Conv2d(1, 64, 2, 2)
    return fitted(net, "vit-8", epochs=30, size=64, seed=seed)


def rows(chosen: argparse.Namespace, task: str, weights: int) -> Iterator[dict[str, Any]]:
    """The dense figures, then for every seed and choice of channels those of the cut alone and with the correction."""
    it = vit(weights) if task == "vit" else subject(task, chosen.data, weights=weights)
    same = {"task": task, "ratio": chosen.ratio, "batches": chosen.batches, "size": chosen.size, "data": it.source}
    same |= {"weights": weights, "together": chosen.together}
    dense = it.figures(it.net)
    yield {**same, "method": "dense", **dense}
    for seed, select in itertools.product(chosen.seeds, chosen.select):
        torch.manual_seed(seed)
        images = list(itertools.islice(itertools.cycle(it.loader(chosen.size)), chosen.batches))
        given = {} if it.example is None else {"example_inputs": it.example}
        obs = Obs(damping=chosen.damping, together=chosen.together, select=select)
        for name, criterion in (("cut", select), ("obs", obs)):
            start = time.perf_counter()
            small = fxprune.prune(
                it.given, criterion, chosen.ratio, data=images, loss=it.loss, seed=seed, progress=False, **given
            )
            seconds = time.perf_counter() - start
            net = small if isinstance(small, nn.Module) else small.unet
            figures = it.figures(net)
            figures["rise"] = figures["loss"] / dense["loss"] - 1
            yield {
                **same,
                "method": name,
                "select": select,
                "seed": seed,
                **figures,
                **moved(it, net),
                "seconds": seconds,
            }


def moved(it: Subject, net: nn.Module) -> dict[str, float]:
    """Of a classifier: the standard error of the rise over the images, and the divergence from the dense answers."""
    if it.answers is None:
        return {}
    (before, labels), (after, _) = it.answers(it.net), it.answers(net)
    dense, pruned = (F.cross_entropy(x, labels, reduction="none") for x in (before, after))
    error = (pruned - dense).std() / len(labels) ** 0.5 / dense.mean()
    ours, theirs = after.log_softmax(1), before.log_softmax(1)
    return {"rise_error": float(error), "kl": float(F.kl_div(ours, theirs, log_target=True, reduction="batchmean"))}


def main() -> None:
    """Measure, append to --out as it goes, and print the table of all rows there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), type=lambda x: x.split(","))
    parser.add_argument("--ratio", default=0.25, type=float)
    parser.add_argument("--batches", type=int, default=8, help="of training images, to score and to correct on")
    parser.add_argument("--size", type=int, default=16, help="of a batch")
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--together", type=int, default=1, help="inputs of layers corrected in one pass")
    parser.add_argument("--select", default="gradflow", type=lambda x: x.split(","), help="criteria that choose")
    parser.add_argument("--weights", default="0", type=lambda x: [int(s) for s in x.split(",")], help="training seeds")
    parser.add_argument("--seeds", default="0", type=lambda x: [int(s) for s in x.split(",")])
    parser.add_argument("--data", type=Path, default=data.PREPARED, help="the file that data.py wrote")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    both = itertools.product(chosen.tasks, chosen.weights)
    tables.append((row for task, weights in both for row in rows(chosen, task, weights)), chosen.out)
    print(tables.training_free(tables.read(chosen.out)))


if __name__ == "__main__":
    main()
