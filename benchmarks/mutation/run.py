"""Mutation testing of masks, schedulers, training, verification and the planner (`make mutate`).

    python benchmarks/mutation/run.py                          the sample of docs/reliability.md
    python benchmarks/mutation/run.py --number 200 --seed 7    another one
    python benchmarks/mutation/run.py --again                  the survivors anew, after better tests

Needs `pip install ".[mutation]"` and a system with fork.  A copy of the checkout is tested, so that you can go on
working.  The tests run once, to see which of them run which line; then each mutant meets the tests of its line, the
quickest first, as many as fit into `--most` seconds.  Results go to a file (`--out`), one a line, and a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from covering import Covering, measure
from mutants import Mutant, drawn, mutated
from running import KILLED, SURVIVED, copied, holding, preload, verdict

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("fxprune/masking", "schedulers", "fxprune/training", "fxprune/verification.py", "fxprune/planning")
TESTS = tuple(f"tests/{name}" for name in ("masking", "schedulers", "training", "verification", "planning"))
UNSEEN = "no test"
Result = dict[str, Any]


def main() -> None:
    options = _options()
    tree = copied(ROOT, options.work / "tree")
    covering = _covering(tree, options)
    preload(covering.modules)
    held = {r["name"]: r for r in map(json.loads, _lines(options.out))}
    if options.again:
        asked = [Mutant(**r["mutant"]) for r in held.values() if r["verdict"] in (SURVIVED, UNSEEN)]
    else:
        asked = [m for m in drawn(tree, _files(tree), options.number, options.seed) if m.name not in held]
    for mutant in asked:
        held[mutant.name] = _tried(tree, mutant, covering, options)
        options.out.write_text("".join(json.dumps(r) + "\n" for r in held.values()))
        print(f"{held[mutant.name]['verdict']:9} {mutant.name}", flush=True)
    print(_table(list(held.values())))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files and folders of tests")
    parser.add_argument("--most", type=float, default=60, help="seconds of tests a mutant, by what they take unchanged")
    parser.add_argument("--again", action="store_true", help="try the survivors in --out anew")
    parser.add_argument("--keep", action="store_true", help="trust the coverage of the last run")
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"), help="results")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fxprune-mutation", help="scratch")
    return parser.parse_args()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _files(tree: Path) -> list[str]:
    found = (p for s in SOURCES for p in ([tree / s] if s.endswith(".py") else sorted((tree / s).rglob("*.py"))))
    return [str(p.relative_to(tree)) for p in found if p.name != "__init__.py"]


def _covering(tree: Path, options: argparse.Namespace) -> Covering:
    """What the tests run, measured in another process: this one must not import what it mutates."""
    file = options.work / "covering.json"
    if not (options.keep and file.exists()):
        process = get_context("spawn").Process(target=_measure, args=(tree, options.tests, file))
        process.start()
        process.join()
    return Covering.read(file)


def _measure(tree: Path, tests: list[str], file: Path) -> None:
    measure(tree, tests).write(file)


def _tried(tree: Path, mutant: Mutant, covering: Covering, options: argparse.Namespace) -> Result:
    """One mutant's verdict, with the tests that it met."""
    tests, planned = [], 0.0
    for test in covering.of(mutant.path, mutant.line):
        planned += covering.seconds[test]
        if not tests or planned <= options.most:
            tests.append(test)
    source = (tree / mutant.path).read_text()
    text = mutated(source, mutant)
    assert text is not None
    result = {"name": mutant.name, "mutant": asdict(mutant), "tests": len(tests)}
    result |= {"before": source.splitlines()[mutant.line - 1], "after": text.splitlines()[mutant.line - 1]}
    if not tests:
        return {**result, "verdict": UNSEEN}
    with holding(tree / mutant.path, text):
        return {**result, "verdict": verdict(tree, tests, 30 + 3 * options.most, options.work / "log.txt")}


def _table(results: list[Result]) -> str:
    """Verdicts by package, in Markdown."""
    kinds = sorted({r["verdict"] for r in results}, key=lambda v: (v != KILLED, v))
    lines = [f"| package | mutants | {' | '.join(kinds)} |", "|---" * (2 + len(kinds)) + "|"]
    for source in SOURCES:
        own = Counter(r["verdict"] for r in results if r["mutant"]["path"].startswith(source))
        lines.append(f"| `{source}` | {own.total()} | {' | '.join(str(own[k]) for k in kinds)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
