"""What `fxprune.search` gives: every candidate with its costs and its metric, the front of the best, and the plans."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxprune.arguments import PATH, takes
from fxprune.errors import InputsError
from fxprune.notebook import shown
from fxprune.planning.plan import Plan
from fxprune.reporting.figures import drawn, figure_of
from fxprune.studies.tabled import frame, written
from fxprune.studies.trials import Ended, cut_of

SHOWN = 16  # rows of a text


@dataclass(frozen=True)
class Candidate:
    """One plan that was tried.

    Attributes:
        number: its place in the search.
        seed: what it was made of, such as "planned by params"; "" where the sampler drew it.
        value: the metric of the dense model that the plan leaves; None where there is an error.
        costs: measure -> what is left of it.
        error: what went wrong, if anything did.
        plan: for `fxprune.apply`; None where no plan keeps to the budgets.
    """

    number: int
    seed: str = ""
    value: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    plan: Plan | None = field(default=None, repr=False)

    @classmethod
    def of(cls, ended: Ended) -> Candidate:
        """A trial that has ended."""
        costs = {} if ended.plan is None else {m: after for m, (_, after) in ended.plan.costs.items()}
        return cls(ended.number, ended.seed, ended.value, costs, ended.error, ended.plan)


@dataclass(frozen=True, repr=False)
class Search:
    """All that a search has tried.

    Attributes:
        model: class name of the model.
        metric: name of the metric.
        base: its value for the given model.
        budgets: measure -> the most that may stay.
        dense: measure -> what the given model costs.
        rows: the candidates in the order in which they were made.
        higher_is_better: of the metric.
    """

    model: str
    metric: str
    base: float
    budgets: Mapping[str, float]
    dense: Mapping[str, float]
    rows: tuple[Candidate, ...]
    higher_is_better: bool = False

    @property
    def ranked(self) -> tuple[Candidate, ...]:
        """The candidates that were measured, the best first."""
        good = [(r.value, r) for r in self.rows if r.value is not None and r.plan is not None]
        return tuple(r for _, r in sorted(good, key=lambda p: (-p[0] if self.higher_is_better else p[0], p[1].number)))

    @property
    def best(self) -> Plan:
        """The plan with the best metric, for `fxprune.apply(model, found.best)`.

        Raises:
            InputsError: none could be measured; tells why.
        """
        if not self.plans:
            why = next((r.error for r in self.rows if r.error), "none was tried")
            raise InputsError(f"none of {len(self.rows)} candidates could be measured; the first: {why}")
        return self.plans[0]

    @property
    def value(self) -> float | None:
        """The best metric; None where none could be measured."""
        return self.ranked[0].value if self.ranked else None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that were measured, each once, the best first."""
        every = [r.plan for r in self.ranked if r.plan is not None]
        cuts = [cut_of(plan) for plan in every]
        return tuple(plan for n, plan in enumerate(every) if cuts[n] not in cuts[:n])

    @property
    def pareto(self) -> tuple[Candidate, ...]:
        """The candidates than which no other is as good in the metric and in every budget, the best metric first."""
        front: list[Candidate] = []
        for row in self.ranked:  # whatever beats a row in all comes before it
            if not any(all(r.costs[m] <= row.costs[m] for m in self.budgets) for r in front):
                front.append(row)
        return tuple(front)

    def summary(self) -> list[tuple[str, ...]]:
        """Cells of a table: number, what it is, metric, what is left of every budget's measure, error; best first."""
        failed = [r for r in self.rows if r.value is None]
        return [self._cells(row) for row in (*self.ranked, *failed)]

    def _cells(self, row: Candidate) -> tuple[str, ...]:
        left = [f"{row.costs[m] / self.dense[m]:.1%}" if row.costs else "" for m in self.budgets]
        value = "" if row.value is None else f"{row.value:.4g}"
        front = "*" if row.value is not None and row in self.pareto else ""
        return (f"{row.number}{front}", row.seed or "drawn", value, *left, row.error)

    @property
    def _titles(self) -> tuple[str, ...]:
        return ("candidate", "from", self.metric, *(f"{m} left" for m in self.budgets), "error")

    @takes(path=PATH.or_none.raising(InputsError))
    def to_csv(self, path: str | Path | None = None) -> str:
        """All candidates in their order, the costs in units of their measures; written to `path` if there is one."""
        text = io.StringIO()
        rows = csv.DictWriter(text, list(self._record(Candidate(0))), lineterminator="\n")
        rows.writeheader()
        rows.writerows(self._record(row) for row in self.rows)
        return written(text.getvalue(), path)

    def _record(self, row: Candidate) -> dict[str, Any]:
        front = row.value is not None and row in self.pareto
        costs = {m: row.costs.get(m) for m in self.dense}
        return {"candidate": row.number, "from": row.seed, self.metric: row.value, **costs, "pareto": front} | {
            "error": row.error
        }

    def to_pandas(self) -> Any:
        """All candidates as a `pandas.DataFrame`.

        Raises:
            InputsError: pandas is not installed.
        """
        return frame(map(self._record, self.rows), "Search")

    @takes()
    def plot(self, path: str | Path) -> None:
        """Draw the metric against every budget's measure, with the front, the seeds and the dense model, into a file.

        Raises:
            InputsError: matplotlib is not installed, or no such file can be written.
        """
        figure = figure_of(5 * len(self.budgets), 4.5)
        grid = figure.subplots(1, len(self.budgets), squeeze=False)[0]
        for axes, measure in zip(grid, self.budgets, strict=True):
            kinds = {
                "drawn": [r for r in self.ranked if not r.seed],
                "seeds": [r for r in self.ranked if r.seed],
                "front": sorted(self.pareto, key=lambda r: r.costs[measure]),
            }
            for (name, rows), style in zip(kinds.items(), ("o", "s", "-"), strict=True):
                axes.plot([r.costs[measure] for r in rows], [r.value for r in rows], style, label=name, alpha=0.7)
            axes.axvline(self.budgets[measure] * self.dense[measure], color="0.6", linestyle=":", label="budget")
            axes.axhline(self.base, color="0.6", linestyle="--", label="dense")
            axes.set(xlabel=f"{measure} left", ylabel=self.metric, title=self.model)
        figure.legend(*grid[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
        drawn(figure, path, 150)

    def __repr__(self) -> str:
        summary = self.summary()
        cells: Sequence[Sequence[str]] = [self._titles, *summary[:SHOWN]]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip() for row in cells]
        more = [f"... and {len(summary) - SHOWN} more"] * (len(summary) > SHOWN)
        return "\n".join([self._title, *lines, *more])

    @property
    def _title(self) -> str:
        asked = ", ".join(f"{m} <= {share:.1%}" for m, share in self.budgets.items())
        return f"{self.model}: {self.metric} of pruned models with {asked} (dense: {self.base:.4g}; *: on the front)"

    def _repr_html_(self) -> str:
        return shown(self._title, self._titles, self.summary())
