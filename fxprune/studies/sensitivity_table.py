"""What `fxprune.sensitivity` gives: a curve of harm for every part of a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fxprune.arguments import FROM_ZERO, PATH, takes
from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.notebook import shown
from fxprune.planning.planner import plan as make_plan
from fxprune.reporting.figures import drawn, figure_of, readable
from fxprune.studies.tabled import frame, written

Floats = npt.NDArray[np.float64]
TIE = 1e-9  # of the harm, for a whole group: what does no harm goes by the share that is gone


@dataclass(frozen=True)
class Curve:
    """Groups that lose channels together, and what the metric was when they had lost some shares of them."""

    groups: tuple[str, ...]
    channels: int
    shares: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What `fxprune.sensitivity` measured.  It can be given as `ratios=` to `plan` and `prune`.

    Attributes:
        model: class name of the model.
        metric: name of the loss or metric.
        base: its value for the dense model.
        curves: one for every part of the model that can shrink by itself.
        higher_is_better: whether a fall of the metric is harm, rather than a rise.
    """

    model: str
    metric: str
    base: float
    curves: tuple[Curve, ...]
    higher_is_better: bool = False

    def harm(self, groups: Sequence[str], shares: Floats) -> Floats | None:
        """By how much the metric is worse when groups have lost shares of their channels; None if none is measured.

        Linear between what was measured, never falling, and rising further beyond it.
        """
        curve = next((c for c in self.curves if set(c.groups) & set(groups)), None)
        if curve is None:
            return None
        sign = -1 if self.higher_is_better else 1
        worse = np.nan_to_num(sign * (np.array([self.base, *curve.values]) - self.base), nan=1e30, posinf=1e30)
        x, y = np.array([0.0, *curve.shares]), np.maximum.accumulate(np.maximum(worse, 0))
        beyond = np.maximum(shares - x[-1], 0) * y[-1] / x[-1]
        out: Floats = np.interp(shares, x, y) + beyond + TIE * shares * max(1e-12, self._scale())
        return out

    def _scale(self) -> float:
        finite = [abs(v - self.base) for c in self.curves for v in c.values if np.isfinite(v)]
        return max(finite, default=1.0)

    @takes(graph=ChannelGraph)
    def ratios(
        self, graph: ChannelGraph, ratio: float | None = None, of: str = "params", **options: Any
    ) -> dict[str, float]:
        """Group -> share of its channels to remove, so that a budget is met and every part is harmed alike.

        Args:
            graph: of the model that was measured.
            ratio: as in `fxprune.plan`.
            of: as in `fxprune.plan`.
            options: others of `fxprune.plan`.
        """
        zeros = {g.name: np.zeros(len(g)) for g in graph.groups}
        made = make_plan(graph, zeros, ratio, of, ratios=self, **options)
        return {name: len(made.removed.get(name, ())) / n for name, n in made.sizes.items()}

    @takes(path=PATH.or_none.raising(InputsError))
    def to_csv(self, path: str | Path | None = None) -> str:
        """Rows of group, groups that go with it, channels, share, metric; written to `path` if there is one."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(self._columns)
        rows.writerows([*names, repr(share), repr(value)] for *names, share, value in self._rows())
        return written(text.getvalue(), path)

    def to_pandas(self) -> Any:
        """The same rows as a `pandas.DataFrame`.

        Raises:
            InputsError: pandas is not installed.
        """
        return frame((dict(zip(self._columns, row, strict=True)) for row in self._rows()), "Sensitivity")

    @property
    def _columns(self) -> tuple[str, ...]:
        return ("group", "with", "channels", "share", self.metric)

    def _rows(self) -> Iterator[tuple[str, str, int, float, float]]:
        for c in self.curves:
            for share, value in zip((0.0, *c.shares), (self.base, *c.values), strict=True):
                yield c.groups[0], " ".join(c.groups[1:]), c.channels, float(share), float(value)

    @takes(named=FROM_ZERO)
    def plot(self, path: str | Path, named: int = 8) -> None:
        """Draw all curves into a file, and name those that do most harm.

        Raises:
            InputsError: matplotlib is not installed, or no such file can be written.
        """
        figure = figure_of(11, 5)
        axes = figure.add_subplot()
        for rank, c in enumerate(self._worst_first()):
            style: dict[str, Any] = (
                {"label": c.groups[0], "marker": "."} if rank < named else {"color": "0.8", "zorder": 0}
            )
            axes.plot((0.0, *c.shares), (self.base, *c.values), **style)
        axes.set(xlabel="share of the channels removed", ylabel=self.metric, title=f"Sensitivity of {self.model}")
        readable(axes, [])
        if named and self.curves:
            figure.legend(fontsize="small", loc="outside right upper", title="the most sensitive first")
        drawn(figure, path, 150)

    def _worst_first(self) -> list[Curve]:
        def harm(c: Curve) -> float:
            at = self.harm(c.groups, np.array([0.5]))
            return 0.0 if at is None else float(at[0])

        return sorted(self.curves, key=harm, reverse=True)

    def _repr_html_(self) -> str:
        rows = [
            (c.groups[0], c.channels, ", ".join(f"{s:.0%} {v:.4g}" for s, v in zip(c.shares, c.values, strict=True)))
            for c in self._worst_first()
        ]
        return shown(repr(self).splitlines()[0], ["group", "channels", f"share gone, {self.metric}"], rows)

    def __repr__(self) -> str:
        lines = [f"Sensitivity of {self.model}: {self.metric} {self.base:.4g} dense; the most sensitive first"]
        for c in self._worst_first()[:16]:
            cells = "  ".join(f"{s:.0%} {v:.4g}" for s, v in zip(c.shares, c.values, strict=True))
            more = f" and {len(c.groups) - 1} more" if len(c.groups) > 1 else ""
            lines.append(f"  {c.groups[0]}{more} ({c.channels}): {cells}")
        return "\n".join(lines + [f"  ... and {len(self.curves) - 16} more"] * (len(self.curves) > 16))
