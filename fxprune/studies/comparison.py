"""What a comparison of criteria and models found: its rows, kept in a CSV file while it runs, and its picture."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.arguments import PATH, takes
from fxprune.errors import FxPruneError, InputsError, SaveError
from fxprune.notebook import shown
from fxprune.reporting.figures import check_picture, drawn, figure_of, readable
from fxprune.reporting.speed import Timing
from fxprune.studies.shared import alone
from fxprune.studies.tabled import frame, written

CSV, PNG = "compare.csv", "compare.png"
Key = tuple[str, float, int, str, int]


@dataclass(frozen=True)
class Compared:
    """One criterion, ratio and seed, and how it was trained; or a finished model.

    Attributes:
        criterion: its name, or that of the model.
        ratio: the share that was asked for; 0 where a finished model was given.
        loss: on held-out batches, after pruning (and after training, where there was some).
        dense: the same before.
        params, macs: shares that went.
        seconds: to score, once for all ratios; of the whole run, where there was training.
        memory: bytes that scoring took beyond what was held before; see `fxprune.studies.peak_memory`.
        error: what went wrong, if anything did; the figures are then missing.
        scheduler, steps: how it was trained: by which scheduler, and for how many steps; "" and 0: not at all.
        speedup: how many times as fast as the dense model one forward on the example inputs was, both timed in turns;
            missing where that would have taken long.
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
    scheduler: str = ""
    steps: int = 0
    speedup: float | None = None

    @property
    def key(self) -> Key:
        return self.criterion, self.ratio, self.seed, self.scheduler, self.steps

    @property
    def name(self) -> str:
        """What a table and a legend call it."""
        return f"{self.criterion}, {self.scheduler}" if self.scheduler else self.criterion

    @property
    def given(self) -> bool:
        """Whether it is a finished model, of which nothing was asked."""
        return not self.ratio

    def measured(self, loss: float, costs: Mapping[str, tuple[float, float]], timing: Timing | None) -> Compared:
        """The row with its loss, with what a plan's costs say, and with what the clock says."""
        gone = {k: 1 - after / before if before else 0.0 for k, (before, after) in costs.items()}
        speedup = None if timing is None else timing.speedup
        return replace(self, loss=loss, params=gone.get("params"), macs=gone.get("macs"), speedup=speedup)


TITLES = ("criterion", "ratio", "loss", "params gone", "MACs gone", "speed", "scored in", "memory", "error")
NAMES = [f.name for f in fields(Compared)]
NUMBERS = {"ratio": float, "seed": int, "memory": int, "steps": int}
TEXTS = ("criterion", "error", "scheduler")


@dataclass(frozen=True, repr=False)
class Comparison:
    """All rows of a comparison, in the order in which criteria, ratios and seeds were given."""

    model: str
    of: str
    rows: tuple[Compared, ...]

    def summary(self) -> list[tuple[str, ...]]:
        """Cells of a table: criterion, ratio, loss (± spread over seeds), parameters, MACs, speed, seconds, memory."""
        out = []
        for name, ratio in dict.fromkeys((r.name, r.ratio) for r in self.rows):
            found = [r for r in self.rows if (r.name, r.ratio) == (name, ratio)]
            good = [r for r in found if not r.error]
            cells = [_spread([r.loss for r in good])]
            cells += [_mean([getattr(r, k) for r in good], "{:.1%}") for k in ("params", "macs")]
            cells += [_mean([r.speedup for r in good], "{:.2f}x"), _mean([r.seconds for r in good], "{:.2f} s")]
            cells += [_mean([r.memory and r.memory / 2**20 for r in good], "{:.0f} MiB")]
            errors = list(dict.fromkeys(r.error for r in found if r.error))
            out.append((name, f"{ratio:g}" if ratio else "given", *cells, "; ".join(errors)))
        return out

    @takes(path=PATH.or_none.raising(InputsError))
    def to_csv(self, path: str | Path | None = None) -> str:
        """All rows, one a criterion, ratio and seed, and one a model; written to `path` if there is one."""
        text = io.StringIO()
        rows = csv.DictWriter(text, NAMES, lineterminator="\n")
        rows.writeheader()
        rows.writerows(asdict(row) for row in self.rows)
        return written(text.getvalue(), path)

    def to_pandas(self) -> Any:
        """All rows as a `pandas.DataFrame`.

        Raises:
            InputsError: pandas is not installed.
        """
        return frame(map(asdict, self.rows), "Comparison")

    def __repr__(self) -> str:
        cells = [TITLES, *self.summary()]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        dense = next((f"{r.dense:.4g}" for r in self.rows if r.dense is not None), "?")
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip() for row in cells]
        return "\n".join([f"{self.model}: loss after pruning {self.of}, {self.how} (dense: {dense})", *lines])

    @property
    def how(self) -> str:
        """How the rows were trained, in words."""
        steps = sorted({r.steps for r in self.rows if not r.given})
        return "without training" if steps in ([], [0]) else f"with {' or '.join(map(str, steps))} steps of training"

    def _repr_html_(self) -> str:
        return shown(repr(self).splitlines()[0], TITLES, self.summary())

    @takes()
    def plot(self, path: str | Path) -> None:
        """Draw loss by ratio (with the range over seeds), seconds and memory into a file.

        Raises:
            InputsError: matplotlib is not installed, or no such file can be written.
        """
        good = [r for r in self.rows if not r.error]
        measured = any(r.memory is not None for r in good)
        figure = figure_of(14 if measured else 11, 4.5)
        loss, seconds, *memory = figure.subplots(1, 2 + measured, width_ratios=[2, 1, 1][: 2 + measured])
        for name in dict.fromkeys(r.name for r in good if not r.given):
            _draw_loss(loss, name, [r for r in good if r.name == name])
        for row in (r for r in good if r.given):
            _draw_given(loss, row, self.of)
        if dense := [r.dense for r in good if r.dense is not None]:
            loss.axhline(float(np.mean(dense)), color="0.6", linestyle="--", label="dense")
        bands = "; bands: lowest to highest of the seeds" if len({r.seed for r in good}) > 1 else ""
        loss.set(xlabel=f"share of {self.of} removed", ylabel=f"loss {self.how}", yscale="log")
        loss.set_title(f"{self.model}{bands}", fontsize="medium")
        if min((r.loss or 0.0 for r in good), default=0.0) <= 0:
            loss.set_yscale("linear")
        readable(loss, sorted({r.ratio for r in good if not r.given}))
        if good:
            figure.legend(*loss.get_legend_handles_labels(), fontsize="small", loc="outside right upper")
        _draw_bars(
            seconds,
            "seconds, in all" if any(r.steps for r in good) else "seconds to score",
            {r.key: (r.name, r.seconds) for r in good if not r.given},
        )
        for axes in memory:
            asked = (r for r in good if not r.given)
            _draw_bars(axes, "MiB to score", {r.key: (r.name, r.memory and r.memory / 2**20) for r in asked})
        drawn(figure, path, 150)


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


def _draw_given(axes: Any, row: Compared, of: str) -> None:
    """A point where it is known how much is gone, else the height of its loss."""
    gone = {"params": row.params, "macs": row.macs}.get(of)
    color = axes._get_lines.get_next_color() if gone is None else None
    if gone is None:
        axes.axhline(row.loss, color=color, linestyle=":", label=row.name)
    else:
        axes.plot([gone], [row.loss], marker="D", linestyle="", label=row.name)


def _draw_bars(axes: Any, title: str, values: Mapping[Key, tuple[str, float | None]]) -> None:
    names = list(dict.fromkeys(name for name, _ in values.values()))
    means = [float(np.mean([v for n, v in values.values() if n == name and v is not None] or [0.0])) for name in names]
    bars = axes.barh(names[::-1], means[::-1], color="0.6")
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize="small")
    axes.margins(x=0.2)
    axes.set_title(title, fontsize="medium")


class Table:
    """The rows so far, and their file: a first line that says what they are of, the names of the columns, the rows.

    Args:
        what: all that rows depend on, by name; see `fxprune.scoring.identity`.
        criteria: the same of each criterion, by its label.
        folder: for the file and the picture; None: nothing is written.

    Raises:
        InputsError: the folder holds rows of something else, or no picture can be drawn in it.
        SaveError: it cannot be written to.
    """

    def __init__(self, what: Mapping[str, str], criteria: Mapping[str, str], folder: Path | None) -> None:
        self.what, self.criteria, self.folder = dict(what), dict(criteria), folder
        self.rows: dict[Key, Compared] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with alone(folder):
                    self._begin(folder / CSV)
            except OSError as e:
                raise SaveError(
                    f"out={str(folder)!r} cannot be written to: {type(e).__name__}: {e}; name another"
                ) from e
            check_picture(folder / PNG, "out")
        self._failed = {key: row for key, row in self.rows.items() if row.error}  # to be made again, once

    @property
    def model(self) -> str:
        """The model's class."""
        return self.what["model"].split()[0]

    def _title(self) -> str:
        """The first line: for people, then the whole as JSON."""
        what = self.what
        shown = f"{self.model}, ratios of {what['of']}, attention by {what['attention']}, {what['samples']} samples"
        return f"# {shown} {json.dumps({**what, 'criteria': self.criteria})}\n"

    def _begin(self, file: Path) -> None:
        """Take over whole rows of an earlier run; what a kill has cut off is dropped.

        Raises:
            InputsError: the file is of another comparison.
        """
        lines = _lines(file)
        if lines:
            self._same(file, lines[0])
        self.rows = _rows(file, lines)
        fresh = file.with_suffix(".new")
        kept = [_line(row) for row in self.rows.values()]
        fresh.write_text("".join([self._title(), ",".join(NAMES) + "\n", *kept]), encoding="utf-8")
        os.replace(fresh, file)

    def _same(self, file: Path, title: str) -> None:
        """Compare a file's title with what is asked; criteria may be more or others, but none of another meaning."""
        other = "name another folder, or remove it"
        try:
            held = json.loads(title[title.index("{") :])
            criteria = dict(held.pop("criteria"))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise InputsError(
                f"{file} does not say of which weights, data and loss its rows are (an earlier fxprune wrote it, or "
                f"something else); {other}"
            ) from e
        now = {**self.what, **{f"criterion {k}": v for k, v in self.criteria.items()}}
        was = {**held, **{f"criterion {k}": v for k, v in criteria.items()}}
        pairs = [(k, was.get(k), v) for k, v in now.items() if k in was or k in self.what]
        if changed := [f"{k} was {a} and now is {b}" for k, a, b in pairs if a != b]:
            raise InputsError(f"{file} holds another comparison: {'; '.join(changed)}; {other}")
        self.criteria = {**criteria, **self.criteria}

    def holds(self, key: Key) -> bool:
        """Whether a row is there, without an error; or with one that came since this table was opened."""
        row = self.rows.get(key)
        return row is not None and not (row.error and row == self._failed.get(key))

    def look(self) -> None:
        """Take over what other processes have written meanwhile."""
        if self.folder is not None:
            with alone(self.folder):
                self.rows |= _rows(self.folder / CSV, _lines(self.folder / CSV))

    def add(self, row: Compared, dense: float) -> None:
        """Keep a row, in the file too."""
        row = replace(row, dense=dense)
        self.rows[row.key] = row
        if self.folder is not None:
            with alone(self.folder), (self.folder / CSV).open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def comparison(self, keys: Iterable[Key]) -> Comparison:
        """The rows that were asked for; draws them, where there is a folder and matplotlib."""
        made = Comparison(self.model, self.what["of"], tuple(self.rows[key] for key in keys))
        if self.folder is not None:
            try:
                with alone(self.folder):
                    made.plot(self.folder / PNG)
            except FxPruneError as e:
                e.kept = made
                raise
        return made


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    except UnicodeDecodeError as e:
        raise InputsError(f"{file} is damaged: it holds no text ({e}); remove it, or name another folder") from e


def _rows(file: Path, lines: Sequence[str]) -> dict[Key, Compared]:
    """The whole rows of a file; the last one of each key counts."""
    columns = _columns(file, lines[1]) if len(lines) > 1 and lines[1].endswith("\n") else NAMES
    whole = (cells for cells in csv.reader(x for x in lines[2:] if x.endswith("\n")) if len(cells) == len(columns))
    try:
        return {row.key: row for row in (_read(columns, cells) for cells in whole)}
    except ValueError as e:
        raise InputsError(f"{file} is damaged ({e}); repair that row, remove the file, or name another folder") from e


def _line(row: Compared) -> str:
    text = io.StringIO()
    values = (getattr(row, name) for name in NAMES)
    cells = ["" if v is None else repr(float(v)) if isinstance(v, float) else str(v) for v in values]
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _columns(file: Path, line: str) -> list[str]:
    """The names of a file's columns; an earlier fxprune wrote fewer.

    Raises:
        InputsError: they are others.
    """
    names = line.rstrip("\n").split(",")
    if names != NAMES[: len(names)]:
        raise InputsError(f"{file} has other columns ({line.strip()[:80]}); name another folder, or remove it")
    return names


def _read(columns: Sequence[str], cells: Sequence[str]) -> Compared:
    held: dict[str, Any] = dict(zip(columns, cells, strict=True))
    for name, text in held.items():
        if name not in TEXTS:
            held[name] = NUMBERS.get(name, float)(text) if text else None
    return Compared(**held)
