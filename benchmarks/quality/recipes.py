"""How to train after the cut: one cut, several recipes, equal steps: `python benchmarks/quality/recipes.py`

    --tasks digits,ddpm,classifier   --ratio 0.6   --steps 200   --batch 32   --seeds 0   --recipes default,...

Every row is one call `fxprune.prune(pipeline, ratio=..., data=..., training=...)`; "default" gives it the number of
steps and nothing else.  "Outputs 1", and what tells more, have a teacher whose outputs weigh as much as the loss, as
the default's did at first.  "Half a percent" and "peak" are that with another rate, and a teacher that is compared with
by the squared error, by the KL divergence, or not at all.  "Corrected" starts from what `Obs` makes of the same
channels.  All of a seed see the same batches, and so make the same cut (by the default criterion, on the first
batches).  Told are the held-out loss (for the classifier: cross entropy and accuracy) and how much of the gap to the
dense loss is left, over what a constant rate of 1e-4 and of 2e-4 leaves.  Rows are appended to `--out` (JSON lines);
`subjects.py` says what the figures are measured on.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import data
import tables
import torch
from subjects import TASKS, Subject, subject
from torch import nn

import fxprune
from fxprune import Distillation, Training
from fxprune.criteria.obs import Obs
from fxprune.schedulers.soft import Soft
from fxprune.training.options import LARGEST, LEADING, RELATIVE, relative_rate


def half(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW by half a percent of the weights' size, the default's rate before it looked at the batch."""
    every = list(parameters)
    return torch.optim.AdamW(every, relative_rate(every) * 0.005 / RELATIVE)


def twice(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW by twice the default's rate for 32 images and more."""
    every = list(parameters)
    return torch.optim.AdamW(every, 2 * relative_rate(every, LARGEST))


CONSTANT: dict[str, Any] = {"warmup": 0, "anneal": False, "distill": None}
PEAKS: dict[str, dict[str, Any]] = {
    "half a percent": {"optimizer": half},
    **{f"peak {rate}": {"learning_rate": float(rate)} for rate in ("2e-4", "5e-4", "1e-3")},
}
TEACHERS = {"": Distillation(1.0, kind="mse"), ", by KL": Distillation(1.0, kind="kl"), ", no teacher": None}
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"constant {rate}": {**CONSTANT, "learning_rate": float(rate)} for rate in ("1e-4", "2e-4")},
    **{f"{name}{how}": {**PEAKS[name], "distill": teacher} for name in PEAKS for how, teacher in TEACHERS.items()},
}
# How much its outputs weigh, and what else the teacher tells, beside outputs of weight 1.
TOLD: dict[str, dict[str, Any]] = {
    **{f"outputs {weight}": {"output": float(weight)} for weight in (1, 4, 100)},
    "jacobian 0.01": {"jacobian": 0.01},
    "jacobian 0.1": {"jacobian": 0.1},
    "features 0.1": {"features": 0.1},
    "projections 0.1": {"features": 0.1, "projections": True},
    "snr": {"timesteps": "snr"},
}
RECIPES |= {name: {"distill": Distillation(**{"output": 1.0, **options})} for name, options in TOLD.items()}
RECIPES |= {
    "averages": {"ema_decay": 0.98},
    # Of the default's outputs, and of the features, and what a correction has to look at.
    **{
        f"features {weight} on {batches} batches": {
            "remember": batches,
            "distill": Distillation(LEADING, features=weight),
        }
        for weight, batches in ((4, 16), (16, 16), (16, 32))
    },
}
RECIPES |= {
    f"{name}, SOAP": {**RECIPES[name], "optimizer": "soap"}
    for name in ("features 16 on 16 batches", "features 16 on 32 batches")
}
# With the network's own dropout, as every row was trained before there was a choice.
TAUGHT = ("default", "features 4 ", "features 16 ")
RECIPES |= {f"{n}, dropout": {**r, "dropout": True} for n, r in RECIPES.items() if n.startswith(TAUGHT)}
# What stays is corrected layer by layer before the first step, and more.
CORRECTED: dict[str, Any] = {"criterion": Obs(select="gradflow")}
RECIPES |= {
    "corrected": CORRECTED,
    "corrected on 16 batches": {**CORRECTED, "remember": 16},
    "corrected, features 4 on 16 batches": {**CORRECTED, **RECIPES["features 4 on 16 batches"]},
    "corrected, jacobian 0.1": {**CORRECTED, **RECIPES["jacobian 0.1"]},
    "twice the rate": {"optimizer": twice},
    "corrected, jacobian 0.1, twice the rate": {**CORRECTED, **RECIPES["jacobian 0.1"], "optimizer": twice},
    "corrected, averages": {**CORRECTED, "ema_decay": 0.98},
    # Masks that move in the first steps, all of whose refreshes look at every channel, or at whole groups first.
    "soft": {"scheduler": Soft()},
    "soft, coarse": {"scheduler": Soft(coarse=True)},
}
RECIPES |= {f"{n}, outputs 1": {**RECIPES[n], **RECIPES["outputs 1"]} for n in ("corrected", "soft", "soft, coarse")}
CHOICES = {"criterion", "scheduler"}
# Without a teacher; the first two are how sweep.py trained before there was a default.
PLAIN: dict[str, dict[str, Any]] = {
    f"cosine from {rate}": {"learning_rate": float(rate), "warmup": 20, "distill": None}
    for rate in ("5e-4", "3e-4", "2e-3")
}
EVERY = {n: r for n, r in {**RECIPES, **PLAIN}.items() if not r.keys() & CHOICES}  # of sweep.py, whose methods choose
USUAL = ("default", "constant 1e-4", "constant 2e-4")
OUT = Path(__file__).with_name("recipes.jsonl")


def trained(it: Subject, ratio: float, batch: int, seed: int, steps: int, recipe: dict[str, Any]) -> nn.Module:
    """The pruned network."""
    how = {name: recipe[name] for name in CHOICES if name in recipe}
    options = {name: value for name, value in recipe.items() if name not in how}
    how |= {"training": Training(steps, **options)} if options else {"steps": steps}
    example = {"example_inputs": it.example} if it.example is not None else {}
    small = fxprune.prune(
        it.given,
        ratio=ratio,
        data=it.loader(batch),
        loss=it.loss,
        seed=seed,
        verify=False,
        progress=False,
        **example,
        **how,
    )
    return small if isinstance(small, nn.Module) else small.unet


def rows(chosen: argparse.Namespace, task: str) -> Iterator[dict[str, Any]]:
    """The dense figures, then one row for every seed and recipe."""
    it = subject(task, chosen.data, chosen.drawn)
    same = {"task": task, "ratio": chosen.ratio, "steps": chosen.steps, "batch": chosen.batch, "data": it.source}
    yield {**same, "recipe": "dense", **it.figures(it.net)}
    for seed, name in itertools.product(chosen.seeds, chosen.recipes):
        start = time.perf_counter()
        small = trained(it, chosen.ratio, chosen.batch, seed, chosen.steps, RECIPES[name])
        seconds = time.perf_counter() - start
        yield {**same, "seed": seed, "recipe": name, **it.figures(small), "seconds": seconds}


def main() -> None:
    """Measure, append to --out as it goes, and print the table of all rows there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="digits", type=lambda x: x.split(","), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--recipes", default="|".join(USUAL), type=lambda x: x.split("|"), help="with | between them")
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--drawn", type=int, default=64, help="training images to draw, where --data is missing")
    parser.add_argument("--seeds", default="0", type=lambda x: [int(s) for s in x.split(",")])
    parser.add_argument("--data", type=Path, default=data.PREPARED, help="the file that data.py wrote")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tables.append((row for task in chosen.tasks for row in rows(chosen, task)), chosen.out)
    print(tables.recipes(tables.read(chosen.out)))


if __name__ == "__main__":
    main()
