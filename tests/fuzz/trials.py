"""Trials by number, their outcomes as lines of JSON, and the table of a campaign."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RIGHT = "ok"
REFUSED = "refused"  # by an error of fxprune's own


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Attributes:
        number: of the trial.
        kind: what was tried, for the rows of the table.
        outcome: "ok", "refused", or what is wrong: "raw", "wrong", "hang", "lost", ...
        note: the message, or what was found.
    """

    number: int
    kind: str
    outcome: str
    note: str = ""

    @property
    def bad(self) -> bool:
        return self.outcome not in (RIGHT, REFUSED)


Campaign = Callable[[Iterable[int], int], Iterator[Outcome]]  # of numbers and a seed


def source(seed: int, number: int) -> random.Random:
    """The random numbers of one trial."""
    return random.Random(f"{seed}/{number}")


def run(campaign: Campaign, numbers: Iterable[int], seed: int, out: Path | None) -> Iterator[Outcome]:
    """The outcomes of those trials that the file does not hold yet, each written as soon as it is there."""
    done = set() if out is None else {o.number for o in _whole(out)}
    left = [n for n in numbers if n not in done]
    for outcome in campaign(left, seed):
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        yield outcome


def _whole(out: Path) -> list[Outcome]:
    """The outcomes in a file, from which a line goes that a kill cut off."""
    held = read(out)
    if out.exists() and not out.read_text(encoding="utf-8").endswith("\n"):
        out.write_text("".join(json.dumps(asdict(o)) + "\n" for o in held), encoding="utf-8")
    return held


def read(out: Path) -> list[Outcome]:
    """The outcomes in a file; a last line that a kill cut off does not count."""
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True) if out.exists() else []
    return [Outcome(**json.loads(line)) for line in lines if line.endswith("\n") and line.strip()]


def table(outcomes: Iterable[Outcome]) -> str:
    """How often each kind came to what, a row a kind."""
    counts: dict[str, Counter[str]] = {}
    for o in outcomes:
        counts.setdefault(o.kind, Counter())[o.outcome] += 1
    columns = sorted({c for row in counts.values() for c in row}, key=lambda c: (c not in (RIGHT, REFUSED), c))
    rows = [["", "trials", *columns]]
    rows += [[k, str(sum(row.values())), *(str(row[c]) for c in columns)] for k, row in sorted(counts.items())]
    total = sum(counts.values(), Counter())
    rows.append(["all", str(sum(total.values())), *(str(total[c]) for c in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
