"""Tables and plots of what sweep.py measured, as a page of the documentation.

    python benchmarks/quality/report.py quality.jsonl [--docs docs]

Every figure is a mean over seeds, with half the range between the lowest and the highest seed behind ±.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

COLUMNS = {
    "loss": ("held-out loss", "{:.4f}"),
    "ssim": ("SSIM to dense", "{:.3f}"),
    "frechet": ("Fréchet distance*", "{:.2f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "confident": ("confident", "{:.2f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "macs": ("MACs", "{:,.0f}"),
    "reached": ("steps to the best one-shot loss", "{:.0f}"),
}
ONE_SHOT = ("random", "magnitude", "taylor", "diff-pruning", "torch-pruning magnitude", "torch-pruning taylor")
TASKS = {"digits": "Digits DDPM", "ddpm": "Emoji DDPM", "ldm": "Emoji LDM", "dit": "Emoji DiT"}
Rows = list[dict[str, Any]]


def by(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], Rows]:
    """Rows with the same values of some keys."""
    out: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        out[tuple(row[k] for k in keys)].append(row)
    return dict(sorted(out.items()))


def reached(rows: Rows) -> None:
    """Add to every row the step from which its held-out loss stays below the best one-shot baseline's last, or None."""
    for same in by(rows, "task", "ratio", "steps").values():
        finals = [fmean(r["curve"][-1][1] for r in own) for (m,), own in by(same, "method").items() if m in ONE_SHOT]
        for row in same:
            row["reached"] = None
            for step, value in reversed(row["curve"]):
                if not finals or value > min(finals):
                    break
                row["reached"] = step


def cell(rows: Rows, key: str, form: str) -> str:
    """Mean and half range over the seeds; a dash where a run never got there."""
    values = [r.get(key) for r in rows]
    if any(v is None for v in values):
        return "–"
    spread = (max(values) - min(values)) / 2
    return form.format(fmean(values)) + (f" ± {form.format(spread)}" if spread and key in ("loss", "ssim") else "")


def table(rows: Rows) -> str:
    """One line a method, the lowest loss first."""
    methods = by(rows, "method")
    order = sorted(methods, key=lambda m: fmean(r["loss"] for r in methods[m]))
    lines = [
        "| method | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for m in order:
        cells = [cell(methods[m], key, form) for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {m[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plots(task: str, rows: Rows, folder: Path) -> list[str]:
    """Loss against parameters, and against steps at each ratio; names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = []
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for (method,), own in by(rows, "method").items():
        points = [(fmean(r["macs"] for r in x), fmean(r["loss"] for r in x)) for x in by(own, "ratio").values()]
        axes.plot(*zip(*sorted(points), strict=True), marker="o", ms=3, lw=1, label=method)
    axes.set(xlabel="MACs of a forward", ylabel="held-out loss", title=TASKS[task])
    axes.legend(fontsize=6)
    names.append(f"quality_{task}_macs.png")
    figure.tight_layout()
    figure.savefig(folder / names[-1], dpi=130)
    plt.close(figure)
    ratios = by(rows, "ratio")
    figure, every = plt.subplots(1, len(ratios), figsize=(4.5 * len(ratios), 3.8), squeeze=False)
    for axes, ((ratio,), same) in zip(every[0], ratios.items(), strict=True):
        for (method,), own in by(same, "method").items():
            steps = [s for s, _ in own[0]["curve"]]
            axes.plot(steps, [fmean(r["curve"][i][1] for r in own) for i in range(len(steps))], lw=1, label=method)
        low = min(r["loss"] for r in same)
        axes.set(title=f"{ratio:.0%} of parameters removed", xlabel="training steps", ylim=(0.97 * low, 1.4 * low))
    every[0][0].set_ylabel("held-out loss")
    every[0][-1].legend(fontsize=6)
    names.append(f"quality_{task}_steps.png")
    figure.tight_layout()
    figure.savefig(folder / names[-1], dpi=130)
    plt.close(figure)
    return names


def page(rows: Rows, docs: Path) -> str:
    """The page; its pictures are written beside it."""
    reached(rows)
    (docs / "assets").mkdir(parents=True, exist_ok=True)
    out = [INTRO]
    for (task,), own in by(rows, "task").items():
        first = own[0]
        seeds = sorted({r["seed"] for r in own})
        out.append(f"## {TASKS[task]}\n")
        out.append(
            f"{first['steps']} training steps in all for each method, seeds {', '.join(map(str, seeds))}, on a "
            f"{first['device']}, torch {first['torch']}.\n"
        )
        out += [f"![](assets/{name})\n" for name in plots(task, own, docs / "assets")]
        for (ratio,), same in by(own, "ratio").items():
            out.append(f"### {ratio:.0%} of the parameters removed\n\n{table(same)}\n")
    return "\n".join(out)


INTRO = """# Quality

Trained diffusion models, pruned by every method to the same number of parameters and trained for the same number of
steps. This page is written by `benchmarks/quality/report.py` from what `make bench-quality` measured.

Held-out loss is the noise prediction error on images that no model has seen; SSIM compares samples with the dense
network's samples from the same noise; ± is half the range over the seeds. *The Fréchet distance is taken in the feature
space of a small classifier trained on the same data; it is not the Inception FID. "gradflow" takes what raises the
gradient norm, as in the paper; "gradflow preserving" is `GradFlow(preserve=True)`. Methods remove the same number of
parameters, not of MACs: those that keep early, wide feature maps keep more of these. The last column is the step from
which a run's held-out loss stays below the last one of the best one-shot baseline (random, magnitude, taylor,
Diff-Pruning, Torch-Pruning, as far as they ran).
"""


def main() -> None:
    """Write `quality.md` and its plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    chosen = parser.parse_args()
    rows = [json.loads(line) for file in chosen.rows for line in file.read_text().splitlines()]
    failed = [r for r in rows if "error" in r]
    (chosen.docs / "quality.md").write_text(page([r for r in rows if "error" not in r], chosen.docs))
    print(f"{len(rows) - len(failed)} rows, {len(failed)} failed: {chosen.docs / 'quality.md'}")


if __name__ == "__main__":
    main()
