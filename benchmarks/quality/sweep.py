"""Prune trained networks by every method, train each the same number of steps, and measure.

    python benchmarks/quality/sweep.py --tasks digits [--ratios 0.44,0.6] [--methods ...|...] [--seeds 0,1,2] [--jobs 2]
    python benchmarks/quality/sweep.py --grid benchmarks/quality/grid.json --device cuda --jobs 16 --minutes 9

Rows are appended to `--out` (JSON lines); what is there already is not run again.  A grid is a list of objects: the
values of task, of, method, recipe, ratio, seed, steps and batch, each one value or a list.  Runs come in the order of
the list, and of an object's keys, the first of which varies slowest.  Every dense network is measured first.
`report.py` makes the tables and plots.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pool
import torch
from cases import CASES, Case, Measuring, case
from data import PREPARED
from methods import METHODS
from recipes import EVERY
from rich.progress import Progress
from runs import run
from subjects import CHECKPOINTS

KEY = ("task", "of", "method", "recipe", "ratio", "seed", "steps", "batch")
DENSE = {"of": "params", "method": "dense", "recipe": "none", "ratio": 0.0, "seed": 0, "steps": 0, "batch": 0}
KNOWN = {"task": CASES, "of": ("params", "macs"), "method": tuple(METHODS), "recipe": tuple(EVERY)}
Row = dict[str, Any]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = parser.add_argument_group("which runs")
    runs.add_argument("--grid", type=Path, nargs="+", help="files of all runs, instead of what follows")
    runs.add_argument("--tasks", default="digits", help=f"comma-separated, of {', '.join(CASES)}")
    runs.add_argument("--methods", default="|".join(METHODS), help="with | between them; all by default")
    runs.add_argument("--recipes", default="default", help=f"with | between them, of {' | '.join(EVERY)}")
    runs.add_argument("--ratios", default="0.3,0.44,0.6,0.75", help="shares of the cost that go")
    runs.add_argument("--of", choices=KNOWN["of"], default="params", help="the cost")
    runs.add_argument("--seeds", default="0,1,2")
    runs.add_argument("--steps", type=int, default=300, help="training steps in all, the same for every method")
    runs.add_argument("--batch", type=int, default=32)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder of what train.py wrote")
    parser.add_argument("--data", type=Path, default=PREPARED, help="the file that data.py wrote")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=8, help="draws of noise and time for each held-out image")
    parser.add_argument("--watched", type=int, default=10**9, help="held-out images for the curve of the loss")
    parser.add_argument("--no-speed", action="store_true", help="time no forwards: other work shares the machine")
    parser.add_argument(
        "--bfloat16", action="store_true", help="train under autocast; pruning and measures stay float32"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no run starts after them")
    parser.add_argument("--grace", type=float, default=0.5, help="minutes more for those that go on, then they end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def grid_of(chosen: argparse.Namespace) -> list[Row]:
    """The grid, from its file or from the command line."""
    if chosen.grid:
        return [part for file in chosen.grid for part in json.loads(file.read_text(encoding="utf-8"))]
    return [
        {
            "task": chosen.tasks.split(","),
            "of": chosen.of,
            "recipe": chosen.recipes.split("|"),
            "seed": [int(s) for s in chosen.seeds.split(",")],
            "ratio": [float(r) for r in chosen.ratios.split(",")],
            "method": chosen.methods.split("|"),
            "steps": chosen.steps,
            "batch": chosen.batch,
        }
    ]


def expanded(grid: list[Row]) -> Iterator[Row]:
    """Every run, each once, in the order asked for.

    >>> part = {**DENSE, "task": "digits", "method": "taylor", "recipe": "default", "seed": [0, 1]}
    >>> [row["seed"] for row in expanded([part])]
    [0, 1]
    """
    seen = set()
    for part in grid:
        values = {"of": "params", "recipe": "default", **part}
        for one in itertools.product(*(v if isinstance(v, list) else [v] for v in values.values())):
            row = dict(zip(values, one, strict=True))
            for name, known in KNOWN.items():
                if row[name] not in known:
                    raise SystemExit(f"{name} {row[name]!r} is unknown; choose from {', '.join(known)}")
            ordered = {k: row[k] for k in KEY}
            if tuple(ordered.values()) not in seen:
                seen.add(tuple(ordered.values()))
                yield ordered


def missing(rows: list[Row], out: Path) -> list[Row]:
    """Those that are not in the file yet."""
    there = set()
    if out.exists():
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        there = {tuple(r[k] for k in KEY) for r in found if "error" not in r}
    return [row for row in rows if tuple(row.values()) not in there]


def serve(chosen: argparse.Namespace) -> None:
    """Run what the parent process asks for."""
    torch.set_num_threads(1)

    @cache
    def known(task: str) -> Case:
        how = Measuring(chosen.samples, chosen.repeats, chosen.watched, not chosen.no_speed)
        return case(task, chosen.device, chosen.data, chosen.checkpoints, how)

    pool.serve(lambda row: run(known(row["task"]), row, chosen.bfloat16))


def main() -> None:
    """Run what is missing, `--jobs` at a time."""
    chosen = options()
    if chosen.worker:
        return serve(chosen)
    until = time.monotonic() + 60 * chosen.minutes
    rows = list(expanded(grid_of(chosen)))
    dense = [{k: {**DENSE, "task": task}[k] for k in KEY} for task in dict.fromkeys(r["task"] for r in rows)]
    parts = [missing(part, chosen.out) for part in (dense, rows)]  # dense first: what they keep is read by the others
    command = [sys.executable, *sys.argv, "--worker"]
    workers = [pool.Worker(command, chosen.out.with_suffix(".log")) for _ in range(chosen.jobs)]
    with Progress() as progress:
        bar = progress.add_task("runs", total=sum(map(len, parts)))

        def keep(row: Row) -> None:
            with chosen.out.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
            progress.advance(bar)

        try:
            for part in parts:
                pool.all_of(part, workers[: len(part)], keep, until, 60 * chosen.grace)
        finally:
            for worker in workers:
                worker.end()


if __name__ == "__main__":
    main()
