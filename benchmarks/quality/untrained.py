"""The held-out loss right after the cut, before any training, by criterion: `python benchmarks/quality/untrained.py`.

    --tasks digits,ddpm,ldm,dit,classifier   --ratios 0.4,0.6   --seeds 0,1,2   --samples 8   --criteria ...
    --weights 0

"gradflow" is what `fxprune.prune(pipeline, ratio=...)` gives with nothing else said: scored with samples that the
pipeline draws itself and the loss of its family, channels ranked per cost; the first cut of a network must be that of
this very call.  The other criteria see the same samples and are ranked alike.  The classifier is scored with two
batches of training images; of that one there are as many as `--weights` has seeds.  Rows are appended to `--out` (JSON
lines); `subjects.py` says what the figures are measured on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data
import tables
import torch
from subjects import TASKS, Subject, subject
from torch import nn

import fxprune
from fxprune.criteria.gradflow import GradFlow

CRITERIA: dict[str, Any] = {
    "gradflow": GradFlow(),
    "taylor": "taylor",
    "magnitude": "magnitude",
    "random": "random",
    "gradflow_preserving": "gradflow_preserving",
    "gradflow, T*, power 1.5": GradFlow(horizon=1.0, power=1.5),
    "gradflow, T*, power 1": GradFlow(horizon=1.0, power=1.0),
    "gradflow 2": GradFlow(horizon=2.0, power=1.0),
    "diff_pruning": "diff_pruning",
    "fisher": "fisher",
}
OUT = Path(__file__).with_name("untrained.jsonl")


def rows(chosen: argparse.Namespace, task: str, weights: int) -> Iterator[dict[str, Any]]:
    """The dense figure, then one row for every seed, ratio and criterion."""
    it = subject(task, chosen.data, weights=weights)
    graph = fxprune.trace(it.net, it.example)
    same = {"task": task, "samples": chosen.samples, "data": it.source, "weights": weights}
    dense = it.figures(it.net)
    yield {**same, "criterion": "dense", **dense}
    checked = it.example is not None  # it has no data of its own
    for seed in chosen.seeds:
        batches, loss = it.calibration(chosen.samples, seed)
        known: dict[Any, Any] = {}
        for name, ratio in itertools.product(chosen.criteria, chosen.ratios):
            scores = fxprune.score(graph, it.net, CRITERIA[name], data=batches, loss=loss, seed=seed, reuse=known)
            small = fxprune.rewrite(it.net, graph, fxprune.plan(graph, scores, ratio)).model
            if name == "gradflow" and not checked:
                _require_same(small, by_default(it, ratio, seed, chosen.samples))
                checked = True
            yield {**same, "seed": seed, "ratio": ratio, "criterion": name, **it.figures(small)}


def by_default(it: Subject, ratio: float, seed: int, samples: int) -> nn.Module:
    """The network that the call with nothing else said gives."""
    small = fxprune.prune(it.given, ratio=ratio, seed=seed, samples=samples, verify=False, progress=False)
    return small if isinstance(small, nn.Module) else small.unet


def _require_same(small: nn.Module, default: nn.Module) -> None:
    ours, theirs = small.state_dict(), default.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[n], theirs[n]) for n in ours):
        raise SystemExit("prune(pipeline, ratio=...) cuts otherwise than scores and plan here")


def main() -> None:
    """Measure, append to --out as it goes, and print the table of all rows there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), type=lambda x: x.split(","))
    parser.add_argument("--criteria", default=",".join(CRITERIA), type=lambda x: x.split(","), help="of CRITERIA")
    parser.add_argument("--ratios", default="0.4,0.6", type=lambda x: [float(r) for r in x.split(",")])
    parser.add_argument("--seeds", default="0,1,2", type=lambda x: [int(s) for s in x.split(",")])
    parser.add_argument("--weights", default="0", type=lambda x: [int(s) for s in x.split(",")], help="training seeds")
    parser.add_argument("--samples", type=int, default=8, help="that the network draws to be scored on")
    parser.add_argument("--data", type=Path, default=data.PREPARED, help="the file that data.py wrote")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    both = itertools.product(chosen.tasks, chosen.weights)
    tables.append((row for task, weights in both for row in rows(chosen, task, weights)), chosen.out)
    print(tables.untrained(tables.read(chosen.out)))


if __name__ == "__main__":
    main()
