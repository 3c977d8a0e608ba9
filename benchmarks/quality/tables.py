"""The tables of the documentation that are not of one task's methods: `python benchmarks/quality/tables.py PAGE ...`

A page says where such a table stands, and which rows it is made of; what follows is written anew:

    <!-- table: recovery of recovery.jsonl -->
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = re.compile(r"(<!-- table: (\w+) of (\S+) -->\n)\n?((?:\|.*\n)*)")
Rows = list[dict[str, Any]]
FIRST = "outputs 1"  # the default's gap, when the first recipes were compared with it
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


def filled(page: str) -> str:
    """A page with the tables that its rows make."""
    return MARK.sub(lambda m: f"{m[1]}\n{TABLES[m[2]](read(HERE / m[3]))}\n", page)


def untrained(found: Rows) -> str:
    """A line for every task and ratio, a column for every criterion, its seeds in order; the lowest mean is bold."""
    names = list(dict.fromkeys(r["criterion"] for r in found if "seed" in r))
    lines = [f"| network, share | dense | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for task, ratio in dict.fromkeys((r["task"], r["ratio"]) for r in found if "seed" in r):
        own = {n: [r for r in found if (r["task"], r.get("ratio"), r["criterion"]) == (task, ratio, n)] for n in names}
        dense = _means([r for r in found if r["task"] == task and r["criterion"] == "dense"])
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
            means = _means(same)
            seeds = len({r["seed"] for r in same}) if name != "dense" else "–"
            lines.append(f"| {run} | {name} | {seeds} | {_figure(means)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def recovery(found: Rows) -> str:
    """A line for every recipe of each network: the loss, and how much of FIRST's gap to the dense one is left."""
    lines = [f"| network | recipe | seeds | held-out loss | of the gap of {FIRST} |", "|---" * 5 + "|"]
    for task, ratio, steps, batch in dict.fromkeys((r["task"], r["ratio"], r["steps"], r["batch"]) for r in found):
        own = [r for r in found if (r["task"], r["ratio"], r["steps"], r["batch"]) == (task, ratio, steps, batch)]
        of = {name: [r for r in own if r["recipe"] == name] for name in dict.fromkeys(r["recipe"] for r in own)}
        lines.append(
            f"| {task}, {ratio:.0%}, {steps} steps of {batch} | dense | – | {_mean(of['dense'], 'loss'):.4f} | – |"
        )
        trained = [(name, same) for name, same in of.items() if name != "dense"]
        for name, same in sorted(trained, key=lambda item: _mean(item[1], "loss")):
            lines.append(f"| | {name} | {len(same)} | {_mean(same, 'loss'):.5f} | {_share(of, name, FIRST)} |")
    return "\n".join(lines)


def training_free(found: Rows) -> str:
    """A line for every network and choice: dense, after the cut, after the correction, with the rise; means over
    networks and seeds."""
    lines = ["| network, share | dense | chosen by | cut | corrected | answers moved | runs |", "|---" * 7 + "|"]
    for task, ratio in dict.fromkeys((r["task"], r["ratio"]) for r in found):
        own = [r for r in found if (r["task"], r["ratio"]) == (task, ratio)]
        dense = [r for r in own if r["method"] == "dense"]
        first = [f"{task}, {ratio:.0%}", _figure(_means(dense))]
        for select in dict.fromkeys(r["select"] for r in own if r not in dense):
            cut, obs = ([r for r in own if (r["method"], r.get("select")) == (m, select)] for m in ("cut", "obs"))
            if cut and obs:
                kl = f"{_mean(obs, 'kl'):.4f}" if "kl" in obs[0] else "–"
                lines.append(f"| {' | '.join([*first, select, _risen(cut), _risen(obs), kl, str(len(obs))])} |")
                first = ["", ""]
    return "\n".join(lines)


def _risen(of: Rows) -> str:
    """The loss, and in brackets how much it rose, of a classifier ± its standard error over the images."""
    error = f" ± {_mean(of, 'rise_error'):.1%}" if "rise_error" in of[0] else ""  # all see the same images
    return f"{_mean(of, 'loss'):.4f} ({_mean(of, 'rise'):+.1%}{error})"


def depth(found: Rows) -> str:
    """A line for every network, share and way: means over the networks trained from other seeds."""
    steps = next(r["steps"] for r in found)
    lines = [
        f"| network | asked | way | networks | blocks gone | latency | loss | after {steps} steps |",
        "|---" * 8 + "|",
    ]
    dense = {t: [r["untrained"] for r in found if (r["task"], r["way"]) == (t, "dense")] for t in _tasks(found)}
    for task, ratio in dict.fromkeys((r["task"], r["ratio"]) for r in found if r["way"] != "dense"):
        own = [r for r in found if (r["task"], r.get("ratio")) == (task, ratio)]
        first = f"{task} (dense {_mean(dense[task], 'loss'):.4f})", f"{ratio:.0%}"
        for way in dict.fromkeys(r["way"] for r in own):
            same = [r for r in own if r["way"] == way]
            cells = [*first, way, str(len(same)), f"{_mean(same, 'blocks'):.0f}", f"{_mean(same, 'latency'):.2f}"]
            cells += [_spread([r[k]["loss"] for r in same], of=False) for k in ("untrained", "trained")]
            lines.append(f"| {' | '.join(cells)} |")
            first = "", ""
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


def _tasks(found: Rows) -> list[str]:
    return list(dict.fromkeys(r["task"] for r in found))


def _spread(values: list[float], of: bool = True) -> str:
    """Mean ± half range, and `of` how many; of one without."""
    if not values:
        return "–"
    half = (max(values) - min(values)) / 2
    spread = f" ± {half:.4f}" if of or len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}" + (f" ({len(values)})" if of else "")


def _mean(of: Rows, key: str) -> float:
    return statistics.fmean(float(r[key]) for r in of)


def _means(of: Rows) -> dict[str, float]:
    return {k: _mean(of, k) for k in ("loss", "accuracy") if k in of[0]}


def _figure(row: dict[str, Any]) -> str:
    return f"{row['loss']:.4f}" + (f" ({row['accuracy']:.3f})" if "accuracy" in row else "")


def _seeds(of: Rows, bold: bool) -> str:
    every = dict.fromkeys(
        _figure(r) for r in sorted(of, key=lambda r: (r.get("weights", 0), r["seed"]))
    )  # magnitude has one for all
    told = " / ".join(every) or "–"
    return f"**{told}**" if bold else told


def _share(of: dict[str, Rows], name: str, constant: str) -> str:
    """How much of a recipe's gap to the dense loss another one leaves, over the seeds that both have."""
    if name == "dense" or constant not in of:
        return "–"
    seeds = {r["seed"] for r in of[name]} & {r["seed"] for r in of[constant]}
    if not seeds:
        return "–"
    left, whole = (_mean([r for r in of[n] if r["seed"] in seeds], "loss") for n in (name, constant))
    dense = _mean(of["dense"], "loss")
    return f"{(left - dense) / (whole - dense):.2f}" if whole > dense else "–"  # no gap to compare with


TABLES = {f.__name__: f for f in (untrained, recipes, recovery, training_free, depth, schedules)}


def main() -> None:
    """Write the tables of some pages anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+")
    for page in parser.parse_args().pages:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
