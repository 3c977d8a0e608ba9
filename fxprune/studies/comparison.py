"""What a comparison of criteria found: its rows, kept in a CSV file while it runs, and its picture."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.errors import InputsError
from fxprune.reporting.figures import drawn, figure_of

CSV, PNG = "compare.csv", "compare.png"
Key = tuple[str, float, int]


@dataclass(frozen=True)
class Compared:
    """One criterion, ratio and seed.

    Attributes:
        loss: after pruning, without training, on held-out batches.
        dense: the same before.
        params, macs: shares that went.
        seconds: to score, once for all ratios.
        memory: bytes that scoring took beyond what was held before; see `fxprune.studies.peak_memory`.
        error: what went wrong, if anything did; the figures are then missing.
    """

    criterion: str
    ratio: float
    seed: int
    loss: float | None = None
    dense: float | None = None
    params: float | None = None
    macs: float | None = None
    seconds: float | None = None
    memory: int | None = None
    error: str = ""

    @property
    def key(self) -> Key:
        return self.criterion, self.ratio, self.seed

    def measured(self, loss: float, costs: Mapping[str, tuple[float, float]]) -> Compared:
        """The row with its loss, and with what a plan's costs say."""
        gone = {k: 1 - after / before if before else 0.0 for k, (before, after) in costs.items()}
        return replace(self, loss=loss, params=gone.get("params"), macs=gone.get("macs"))


NAMES = [f.name for f in fields(Compared)]
NUMBERS = {"ratio": float, "seed": int, "memory": int}


@dataclass(frozen=True)
class Comparison:
    """All rows of a comparison, in the order in which criteria, ratios and seeds were given."""

    model: str
    of: str
    rows: tuple[Compared, ...]

    def summary(self) -> list[tuple[str, ...]]:
        """Cells of a table: criterion, ratio, loss (± spread over seeds), parameters, MACs, seconds, memory."""
        out = []
        for criterion, ratio in dict.fromkeys((r.criterion, r.ratio) for r in self.rows):
            found = [r for r in self.rows if (r.criterion, r.ratio) == (criterion, ratio)]
            good = [r for r in found if not r.error]
            cells = [_spread([r.loss for r in good])]
            cells += [_mean([getattr(r, k) for r in good], "{:.1%}") for k in ("params", "macs")]
            cells += [_mean([r.seconds for r in good], "{:.2f} s")]
            cells += [_mean([r.memory and r.memory / 2**20 for r in good], "{:.0f} MiB")]
            errors = list(dict.fromkeys(r.error for r in found if r.error))
            out.append((criterion, f"{ratio:g}", *cells, "; ".join(errors)))
        return out

    def plot(self, path: str | Path) -> None:
        """Draw loss by ratio (with the range over seeds), seconds and memory into a file.

        Raises:
            InputsError: matplotlib is not installed, or no such file can be written.
        """
        figure = figure_of(12, 4.5)
        loss, seconds, memory = figure.subplots(1, 3, width_ratios=[2, 1, 1])
        good = [r for r in self.rows if not r.error]
        for criterion in dict.fromkeys(r.criterion for r in good):
            _draw_loss(loss, criterion, [r for r in good if r.criterion == criterion])
        if dense := [r.dense for r in good if r.dense is not None]:
            loss.axhline(float(np.mean(dense)), color="0.6", linestyle="--", label="dense")
        loss.set(xlabel=f"share of {self.of} removed", ylabel="loss without training", title=self.model, yscale="log")
        if min((r.loss or 0.0 for r in good), default=0.0) <= 0:
            loss.set_yscale("linear")
        if good:
            loss.legend(fontsize="small")
        _draw_bars(seconds, "seconds to score", {r.key: (r.criterion, r.seconds) for r in good})
        _draw_bars(memory, "MiB to score", {r.key: (r.criterion, r.memory and r.memory / 2**20) for r in good})
        drawn(figure, path, dpi=150)


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [v for v in values if v is not None]
    return form.format(float(np.mean(known))) if known else ""


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    more = f" ± {np.std(known, ddof=1):.2g}" if len(known) > 1 else ""
    return f"{np.mean(known):.4g}{more}" if known else ""


def _draw_loss(axes: Any, criterion: str, rows: list[Compared]) -> None:
    ratios = sorted({r.ratio for r in rows})
    values = [[r.loss for r in rows if r.ratio == ratio and r.loss is not None] for ratio in ratios]
    (line,) = axes.plot(ratios, [np.mean(v) for v in values], marker=".", label=criterion)
    low, high = [min(v) for v in values], [max(v) for v in values]
    axes.fill_between(ratios, low, high, color=line.get_color(), alpha=0.15)


def _draw_bars(axes: Any, title: str, values: Mapping[Key, tuple[str, float | None]]) -> None:
    names = list(dict.fromkeys(name for name, _ in values.values()))
    means = [float(np.mean([v for n, v in values.values() if n == name and v is not None] or [0.0])) for name in names]
    axes.barh(names[::-1], means[::-1], color="0.6")
    axes.set(title=title)


class Table:
    """The rows so far, and their file: a first line that says what they are of, the names of the columns, the rows."""

    def __init__(self, model: str, of: str, attention: str, samples: int, folder: Path | None) -> None:
        self.model, self.of, self.folder = model, of, folder
        self.title = f"# {model}, ratios of {of}, attention by {attention}, {samples} samples"
        self.rows: dict[Key, Compared] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin(folder / CSV)

    def _begin(self, file: Path) -> None:
        """Take over whole rows of an earlier run; what a kill has cut off is dropped.

        Raises:
            InputsError: the file is of another comparison.
        """
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        if lines and lines[0].strip() != self.title:
            raise InputsError(
                f"{file} holds another comparison ({lines[0].strip(' #')!r}, now {self.title.strip(' #')!r}); name "
                "another folder, or remove it"
            )
        whole = (cells for cells in csv.reader(x for x in lines[2:] if x.endswith("\n")) if len(cells) == len(NAMES))
        for row in map(_read, whole):
            self.rows[row.key] = row
        fresh = file.with_suffix(".new")
        kept = [_line(row) for row in self.rows.values()]
        fresh.write_text("".join([self.title + "\n", ",".join(NAMES) + "\n", *kept]), encoding="utf-8")
        os.replace(fresh, file)

    def holds(self, criterion: str, ratio: float, seed: int) -> bool:
        """Whether a row is there, without an error."""
        row = self.rows.get((criterion, ratio, seed))
        return row is not None and not row.error

    def add(self, row: Compared, dense: float) -> None:
        """Keep a row, in the file too."""
        row = replace(row, dense=dense)
        self.rows[row.key] = row
        if self.folder is not None:
            with (self.folder / CSV).open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def comparison(self, keys: Iterable[Key]) -> Comparison:
        """The rows that were asked for; draws them, where there is a folder and matplotlib."""
        made = Comparison(self.model, self.of, tuple(self.rows[key] for key in keys))
        if self.folder is not None:
            made.plot(self.folder / PNG)
        return made


def _line(row: Compared) -> str:
    text = io.StringIO()
    values = (getattr(row, name) for name in NAMES)
    cells = ["" if v is None else f"{v:.9g}" if isinstance(v, float) else str(v) for v in values]
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _read(cells: Sequence[str]) -> Compared:
    held: dict[str, Any] = dict(zip(NAMES, cells, strict=True))
    for name, text in held.items():
        if name not in ("criterion", "error"):
            held[name] = NUMBERS.get(name, float)(text) if text else None
    return Compared(**held)
