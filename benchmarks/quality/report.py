"""Tables and plots of what sweep.py measured, as a page of the documentation.

    python benchmarks/quality/report.py quality.jsonl [--docs docs]

Every figure is a mean over seeds, with half the range between the lowest and the highest seed behind ±.  What stands
behind KEPT on the page is written by hand and stays, but for its tables, which are those of tables.py.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import tables

COLUMNS = {
    "loss": ("held-out loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "bands": ("by quarter of the schedule, least noise first", "{}"),
    "ssim": ("SSIM to dense", "{:.3f}"),
    "frechet": ("Fréchet distance*", "{:.2f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "confident": ("confident", "{:.2f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "macs": ("MACs", "{:,.0f}"),
    "speedup": ("speed-up", "{:.2f}"),
    "images_a_second": ("images/s", "{:.0f}"),
    "activations": ("activations, MiB", "{:.1f}"),
    "energy": ("J an image", "{:.2g}"),
    "reached": ("steps to the best one-shot loss", "{:.0f}"),
}
ONE_SHOT = (
    *("random", "magnitude", "taylor", "diff-pruning"),
    *(f"torch-pruning {importance}" for importance in ("magnitude", "taylor", "diff-pruning")),
)
DENSE = ("task", "device", "weights")
BANDS = 4
COSTS = {"params": "parameters", "macs": "MACs"}
SAME = ("task", "of", "recipe", "steps", "batch", "device", "weights")  # rows that can be compared
SAME_CUT = ("default", "gradflow weighed per cost")  # by one call, and by sweep.py's own loop
TASKS = {
    "digits": "Digits DDPM",
    "ddpm": "Emoji DDPM",
    "ldm": "Emoji LDM",
    "dit": "Emoji DiT",
    "classifier": "Digits ResNet-18",
}
KEPT = "<!-- by hand from here: benchmarks/quality/untrained.py and recipes.py -->"
Row = dict[str, Any]
Rows = list[Row]


def by(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], Rows]:
    """Rows with the same values of some keys."""
    out: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        out[tuple(row[k] for k in keys)].append(row)
    return dict(sorted(out.items()))


def reached(rows: Rows) -> None:
    """Add to every row the step from which its held-out loss stays below the best one-shot baseline's last, or None."""
    for same in by(rows, *SAME, "ratio").values():
        finals = [
            fmean(r["curve"][-1][1] for r in own)
            for (m,), own in by(same, "method").items()
            if m in ONE_SHOT and all(r["curve"] for r in own)
        ]
        for row in same:
            row["reached"] = None
            for step, value in reversed(row["curve"]):
                if not finals or value > min(finals):
                    break
                row["reached"] = step


def cell(rows: Rows, key: str, form: str) -> str:
    """Mean and half range over the seeds; a dash where a run never got there."""
    if key == "bands":
        return " / ".join(f"{fmean(r[f'loss, band {b}'] for r in rows):.3f}" for b in range(BANDS))
    values = [r.get(key) for r in rows]
    if key == "activations":
        values = [v / 2**20 for v in values]
    if any(v is None for v in values):
        return "–"
    spread = (max(values) - min(values)) / 2
    return form.format(fmean(values)) + (f" ± {form.format(spread)}" if spread and key in ("loss", "ssim") else "")


def table(rows: Rows) -> str:
    """One line a method, the lowest loss first."""
    methods = by(rows, "method")
    there = {k for r in rows for k in r if r[k] is not None} | {"reached"}
    there |= {"bands"} if "loss, band 0" in there else set()
    columns = {k: c for k, c in COLUMNS.items() if k in there}
    order = sorted(methods, key=lambda m: fmean(r["loss"] for r in methods[m]))
    lines = [
        "| method | seeds | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for m in order:
        cells = [cell(methods[m], key, form) for key, (_, form) in columns.items()]
        lines.append(f"| {m[0]} | {len(methods[m])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plots(name: str, title: str, rows: Rows, folder: Path) -> list[str]:
    """Loss against MACs; against steps, at each ratio; and the layers' widths at the largest. Names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = []
    methods = [m for (m,) in by(rows, "method")]
    look = {m: {"color": plt.get_cmap("tab10")(i % 10), "ls": "-" if i < 10 else "--"} for i, m in enumerate(methods)}

    def keep(figure: Any, what: str) -> None:
        names.append(f"quality_{name}_{what}.png")
        figure.tight_layout()
        figure.savefig(folder / names[-1], dpi=130, bbox_inches="tight")
        plt.close(figure)

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for (method,), own in by(rows, "method").items():
        points = [(fmean(r["macs"] for r in x), fmean(r["loss"] for r in x)) for x in by(own, "ratio").values()]
        axes.plot(*zip(*sorted(points), strict=True), marker="o", ms=3, lw=1, label=method, **look[method])
    low, high = min(r["loss"] for r in rows), max(r["loss"] for r in rows)
    axes.set(xlabel="MACs of a forward", ylabel="held-out loss", title=title)
    axes.set_ylim(0.97 * low, min(1.75 * low, 1.03 * high))
    axes.legend(fontsize=6)
    keep(figure, "macs")
    ratios = by(rows, "ratio")
    figure, every = plt.subplots(1, len(ratios), figsize=(4.5 * len(ratios) + 2.5, 3.8), squeeze=False)
    for axes, ((ratio,), same) in zip(every[0], ratios.items(), strict=True):
        for (method,), own in by(same, "method").items():
            if not all(r["curve"] for r in own):
                continue  # trained by the library, which measures nothing on the way
            steps = [s for s, _ in own[0]["curve"]]
            loss = [fmean(r["curve"][i][1] for r in own) for i in range(len(steps))]
            axes.plot(steps, loss, lw=1, label=method, **look[method])
        low = min(r["curve"][-1][1] if r["curve"] else r["loss"] for r in same)
        axes.set(title=f"{ratio:.0%} removed", xlabel="training steps", ylim=(0.95 * low, 1.4 * low))
    every[0][0].set_ylabel("held-out loss")
    figure.legend(*most_lines(every[0]), fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    keep(figure, "steps")
    if wide := by((r for r in rows if r.get("widths") and r["ratio"] == max(ratios)[0]), "method"):
        layers = list(dict.fromkeys(n for own in wide.values() for n in own[0]["widths"]))
        figure, axes = plt.subplots(figsize=(0.16 * len(layers) + 3, 0.3 * len(wide) + 3.5))
        table = [[own[0]["widths"].get(n, float("nan")) for n in layers] for own in wide.values()]
        shown = axes.imshow(table, aspect="auto", vmin=0, vmax=1, cmap="viridis")
        axes.set_xticks(range(len(layers)), [n.removesuffix(".weight") for n in layers], rotation=90, fontsize=5)
        axes.set_yticks(range(len(wide)), [m for (m,) in wide], fontsize=7)
        axes.set_title(f"share of output channels left, {max(ratios)[0]:.0%} removed, first seed", fontsize=8)
        figure.colorbar(shown)
        keep(figure, "widths")
    return names


def most_lines(every: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """Handles and labels of the axes with the most methods."""
    out: tuple[list[Any], list[str]] = max(
        (a.get_legend_handles_labels() for a in every), key=lambda pair: len(pair[1])
    )
    return out


def page(rows: Rows, docs: Path) -> str:
    """The page; its pictures and all rows as CSV are written beside it."""
    reached([r for r in rows if r["method"] != "dense"])
    (docs / "assets").mkdir(parents=True, exist_ok=True)
    as_csv(rows, docs / "assets" / "quality.csv")
    out = [INTRO]
    compared = [r for r in rows if r["method"] != "dense"]
    names: set[str] = set()
    for own in by(compared, *SAME).values():
        if len(by(own, "method")) > 1:
            out += section(own, docs, picture(own[0], names))
    if gaps := recipes(rows):
        out.append(f"## Recipes\n\n{RECIPES}\n{gaps}\n")
    return "\n".join([*out, KEPT + kept(docs / "quality.md")])


def section(own: Rows, docs: Path, name: str) -> list[str]:
    """Plots and tables of rows that can be compared."""
    first = own[0]
    seeds = sorted({r["seed"] for r in own})
    cost = COSTS[first["of"]]
    title = f"{TASKS[first['task']]}, equal {cost}, {recipe(first['recipe'])}"
    out = [f"## {title}\n"]
    out.append(
        f"{first['steps']} training steps of {first['batch']} images ({first['training dtype']}) in all for each "
        f"method, seeds {', '.join(map(str, seeds))}, on a {first['device']}, torch {first['torch']}.\n"
    )
    out += [f"![](assets/{picture})\n" for picture in plots(name, title, own, docs / "assets")]
    for (ratio,), same in by(own, "ratio").items():
        out.append(f"### {ratio:.0%} of the {cost} removed\n\n{table(same)}\n")
    return out


def picture(first: Row, names: set[str]) -> str:
    """A name for the pictures of these rows that no others have."""
    own = first["recipe"].replace(" ", "_")
    plain = f"{first['task']}_{first['of']}" + ("" if own.startswith("cosine") else f"_{own}")
    name = next(n for n in itertools.chain([plain], (f"{plain}_{k}" for k in itertools.count(2))) if n not in names)
    names.add(name)
    return name


def recipe(name: str) -> str:
    """In words."""
    return {"default": "the default recipe", "half a percent": "a peak of half a percent"}.get(name, name)


def recipes(rows: Rows) -> str:
    """What each recipe leaves of the gap to the dense loss, after the cut that is the default."""
    alike = ("task", "ratio", "steps", "batch", "device", "weights")
    found: Rows = []
    for key, own in by((r for r in rows if r["method"] in SAME_CUT), *alike).items():
        dense = [r for r in rows if r["method"] == "dense" and tuple(r[k] for k in DENSE) == (key[0], *key[-2:])]
        if dense and len({r["recipe"] for r in own}) > 1:
            found += [{**dense[-1], **dict(zip(alike, key, strict=True)), "recipe": "dense"}, *own]
    return tables.recipes(found) if found else ""


def kept(file: Path) -> str:
    """What was written by hand on the page of before, its tables made anew."""
    return tables.filled(file.read_text().partition(KEPT)[2]) if file.exists() else "\n"


def as_csv(rows: Rows, file: Path) -> None:
    """Every run as a line; curves and widths stay in the JSON lines."""
    names = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in ("curve", "widths")]
    with file.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


INTRO = """# Quality

Trained diffusion models, pruned by every method to the same cost and trained for the same number of steps. This page is
written by `benchmarks/quality/report.py` from what `make bench-quality` measured; [all rows](assets/quality.csv). At
its end: [before any training](#before-any-training), and [the recipe](#the-recipe) that trains what was cut.

- Held-out loss: the noise prediction error on images that no model has seen. SSIM: samples against the dense network's
  from the same noise. ± is half the range over the seeds.
- *The Fréchet distance is taken in the feature space of a small classifier trained on the same data; it is not the
  Inception FID. Confident: share of samples that this classifier names with a probability of 0.9 or more.
- Speed-up: of a forward pass, the dense and the pruned network taking turns, beside other work on the same machine;
  `benchmarks/speed.py` measures on a quiet one. Activations: the most that this pass holds beside the weights.
- The last column: the step from which a run's held-out loss stays below the last one of the best one-shot baseline
  (random, magnitude, taylor, Diff-Pruning, Torch-Pruning, as far as they ran).
- Plots leave out losses far above the lowest; the tables have them.

Magnitude, taylor, Diff-Pruning and Torch-Pruning rank channels by their scores alone, as published. "Per cost", soft
and iterative methods weigh a channel's score against what it costs and what its group has left (`scope="knapsack"`,
this library's default). "gradflow" takes what raises the gradient norm, as in the paper; "gradflow preserving" takes
what changes it least, "gradflow weighed" is this library's default. All rows of it, of "default", and below of recipes
and teachers that do not say otherwise were measured when `gradflow` looked a whole `T*` ahead and summed effects as
they are ([what that changes](#before-any-training)). "snr" scores by the error of the clean sample instead of the noise
(`Timesteps("snr", gamma=0.2)`); all methods train with the same loss. "scratch" is the architecture that magnitude
leaves, with fresh weights. The settings of soft and iterative, the ranking and the 0.2 were chosen by trials on these
same networks and held-out images; the published methods were not tuned. "default" is one call `fxprune.prune(pipeline,
ratio=..., steps=..., data=...)` with nothing else given, or with a scheduler; it measures nothing on its way. Within a
table all methods train alike, by AdamW and the recipe that heads it: "cosine from 5e-4" is a warm-up of 20 steps to
that rate and a cosine to zero, without a teacher; "the default recipe" is that of [`Training`](training.md#the-recipe),
for methods of other libraries too; "a peak of half a percent" is what it was when these rows were measured: another
peak of the rate, and the squared error to the dense outputs on the classifier, too. A network that has dropout was
trained with it after the cut, too, but for [one section](#nearest-to-the-dense-network).

Equal parameters are not equal MACs: magnitude, which takes about the same share of every
layer, leaves the fewest.
"""


RECIPES = """The default cut, trained by several recipes: the held-out loss, and the gap to the dense loss that
is left, over that of a constant rate without a teacher. Means over seeds; "half a percent" and "peak" are
the default with that highest rate, its teacher compared with by the squared error, by the KL divergence, or not at all.
"""


def main() -> None:
    """Write `quality.md` and its plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    chosen = parser.parse_args()
    rows = [{"weights": ""} | json.loads(line) for file in chosen.rows for line in file.read_text().splitlines()]
    failed = [r for r in rows if "error" in r]
    (chosen.docs / "quality.md").write_text(page([r for r in rows if "error" not in r], chosen.docs))
    print(f"{len(rows) - len(failed)} rows, {len(failed)} failed: {chosen.docs / 'quality.md'}")


if __name__ == "__main__":
    main()
