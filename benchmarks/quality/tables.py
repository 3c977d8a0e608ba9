"""The tables of docs/quality.md that are not of one task's methods: before training, recipes, schedules."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
METHODS = {
    "gradflow weighed per cost": "one cut",
    "iterative gradflow weighed": "rounds",
    "soft gradflow weighed": "soft",
    "soft gradflow weighed, coarse": "soft, coarse",
}


def read(file: Path) -> Rows:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def append(rows: Iterable[dict[str, Any]], out: Path) -> None:
    """Print rows and write them to a file of JSON lines, each as soon as it is there."""
    for row in rows:
        line = json.dumps(row)
        print(line, flush=True)
        with out.open("a", encoding="utf-8") as f:
            f.write(line + "\n")


def untrained(found: Rows) -> str:
    """A line for every task and ratio, a column for every criterion, its seeds in order; the lowest mean is bold."""
    names = list(dict.fromkeys(r["criterion"] for r in found if "seed" in r))
    lines = [f"| network, share | dense | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for task, ratio in dict.fromkeys((r["task"], r["ratio"]) for r in found if "seed" in r):
        own = {n: [r for r in found if (r["task"], r.get("ratio"), r["criterion"]) == (task, ratio, n)] for n in names}
        dense = next(r for r in found if r["task"] == task and r["criterion"] == "dense")
        least = min(_mean(of, "loss") for of in own.values() if of)
        cells = [_seeds(of, bool(of) and _mean(of, "loss") == least) for of in own.values()]
        lines.append(f"| {task}, {ratio:.0%} | {_figure(dense)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def recipes(found: Rows) -> str:
    """A line for every network and recipe: means over seeds, and how much of a constant rate's gap is left."""
    lines = ["| network | recipe | seeds | held-out loss | of the gap of a constant 1e-4 | of 2e-4 |", "|---" * 6 + "|"]
    runs: dict[str, Rows] = {}
    for r in found:
        run = f"{r['task']}, {r['ratio']:.0%}, {r['steps']} steps of {r['batch']}"
        run += f", {r['weights']} network" if r.get("weights") else ""
        runs.setdefault(run, []).append(r)
    for run, own in runs.items():
        of = {name: [r for r in own if r["recipe"] == name] for name in dict.fromkeys(r["recipe"] for r in own)}
        for name, same in of.items():
            shares = [_share(of, name, constant) for constant in ("constant 1e-4", "constant 2e-4")]
            means = {k: _mean(same, k) for k in ("loss", "accuracy") if k in same[0]}
            seeds = len({r["seed"] for r in same}) if name != "dense" else "–"
            lines.append(f"| {run} | {name} | {seeds} | {_figure(means)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def recovery(found: Rows) -> str:
    """A line for every recipe of each network: the loss, and how much of the default's gap to the dense one is left."""
    lines = ["| network | recipe | seeds | held-out loss | of the gap of the default |", "|---" * 5 + "|"]
    for task, ratio, steps, batch in dict.fromkeys((r["task"], r["ratio"], r["steps"], r["batch"]) for r in found):
        own = [r for r in found if (r["task"], r["ratio"], r["steps"], r["batch"]) == (task, ratio, steps, batch)]
        of = {name: [r for r in own if r["recipe"] == name] for name in dict.fromkeys(r["recipe"] for r in own)}
        dense, default = _mean(of.pop("dense"), "loss"), _mean(of["default"], "loss")
        lines.append(f"| {task}, {ratio:.0%}, {steps} steps of {batch} | dense | – | {dense:.4f} | – |")
        for name, same in sorted(of.items(), key=lambda item: _mean(item[1], "loss")):
            left = (_mean(same, "loss") - dense) / (default - dense)
            lines.append(f"| | {name} | {len(same)} | {_mean(same, 'loss'):.5f} | {left:.2f} |")
    return "\n".join(lines)


def training_free(found: Rows) -> str:
    """A line for every network: dense, after the cut, after the correction; in brackets the rise (means over seeds)."""
    lines = ["| network, share | dense | cut | corrected | seeds |", "|---" * 5 + "|"]
    for task, ratio in dict.fromkeys((r["task"], r["ratio"]) for r in found):
        own = [r for r in found if (r["task"], r["ratio"]) == (task, ratio)]
        of = {name: [r for r in own if r["method"] == name] for name in ("dense", "cut", "obs")}
        if all(of.values()):
            cells = [f"{_mean(of[n], 'loss'):.4f} (+{_mean(of[n], 'rise'):.1%})" for n in ("cut", "obs")]
            seeds = len({r["seed"] for r in of["obs"]})
            lines.append(f"| {task}, {ratio:.0%} | {_figure(of['dense'][0])} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def schedules(found: Rows) -> str:
    """A line for every network, share, steps and batch, a column for every schedule: mean ± half range (seeds)."""
    runs = [r for r in found if r["method"] in METHODS]
    names = [m for m in METHODS if any(r["method"] == m for r in runs)]
    titles = " | ".join(METHODS[m] for m in names)
    lines = [f"| network, share | steps | dense | {titles} |", "|---" * (len(names) + 3) + "|"]
    for task, ratio, steps, batch in dict.fromkeys((r["task"], r["ratio"], r["steps"], r["batch"]) for r in runs):
        own = [r for r in runs if (r["task"], r["ratio"], r["steps"], r["batch"]) == (task, ratio, steps, batch)]
        dense = next(r["loss"] for r in found if (r["task"], r["method"]) == (task, "dense"))
        cells = [_spread([r["loss"] for r in own if r["method"] == m]) for m in names]
        lines.append(f"| {task}, {ratio:.0%} | {steps} of {batch} | {dense:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{sum(values) / len(values):.4f} ± {(max(values) - min(values)) / 2:.4f} ({len(values)})"


def _mean(of: Rows, key: str) -> float:
    return sum(float(r[key]) for r in of) / len(of)


def _figure(row: dict[str, Any]) -> str:
    return f"{row['loss']:.4f}" + (f" ({row['accuracy']:.3f})" if "accuracy" in row else "")


def _seeds(of: Rows, bold: bool) -> str:
    every = dict.fromkeys(_figure(r) for r in sorted(of, key=lambda r: int(r["seed"])))  # magnitude has one for all
    told = " / ".join(every) or "–"
    return f"**{told}**" if bold else told


def _share(of: dict[str, Rows], name: str, constant: str) -> str:
    if name == "dense" or constant not in of:
        return "–"
    dense, left, whole = (_mean(of[n], "loss") for n in ("dense", name, constant))
    return f"{(left - dense) / (whole - dense):.2f}" if whole > dense else "–"  # no gap to compare with
