"""What a run tells, step by step: loss, figures of the scheduler, and the mean mask of every group.

A history grows by a few numbers a step.  Of the group means no more than `ROWS` are kept: once there are more, every
other one goes and they are taken half as often.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ROWS = 512


@dataclass(frozen=True)
class Told:
    """Figures of one step: its number, the loss if it was given, what the scheduler tells (`remaining` cost, ...)."""

    step: int
    loss: float | None
    figures: Mapping[str, float]


class History(Sequence[Told]):
    """The figures of all steps, as a sequence of `Told`.

    Attributes:
        groups: names of the groups that `means` has columns for.
        every: `means` has a row for each `every`-th step, from the first on.

    >>> history = History(["conv:0"])
    >>> history.add(0.5, {"remaining": 0.9}, [1.0])
    Told(step=1, loss=0.5, figures={'remaining': 0.9})
    >>> history.column("remaining").tolist()
    [0.9]
    """

    def __init__(self, groups: Sequence[str] = ()) -> None:
        self.groups, self.every = tuple(groups), 1
        self._losses: array[float] = array("d")
        self._figures: dict[str, array[float]] = {}
        self._rows: list[npt.NDArray[np.float32]] = []

    def __repr__(self) -> str:
        return f"History of {len(self)} steps, {len(self.groups)} groups"

    def __len__(self) -> int:
        return len(self._losses)

    @overload
    def __getitem__(self, index: int) -> Told: ...
    @overload
    def __getitem__(self, index: slice) -> list[Told]: ...
    def __getitem__(self, index: int | slice) -> Told | list[Told]:
        at = range(len(self))[index]
        return self._told(at) if isinstance(at, int) else [self._told(i) for i in at]

    def _told(self, i: int) -> Told:
        loss = self._losses[i]
        figures = {name: v[i] for name, v in self._figures.items() if not math.isnan(v[i])}
        return Told(i + 1, None if math.isnan(loss) else loss, figures)

    def add(self, loss: float | None, figures: Mapping[str, float], means: Sequence[float] | Floats = ()) -> Told:
        """One more step; `means` is the mean mask of every group, empty once there are no masks any more."""
        for name in figures:
            self._figures.setdefault(name, array("d", [math.nan] * len(self)))
        for name, column in self._figures.items():
            column.append(figures.get(name, math.nan))
        if len(means) and len(self) % self.every == 0:
            self._rows.append(np.asarray(means, np.float32))
        self._losses.append(math.nan if loss is None else loss)
        if len(self._rows) > ROWS:
            self._rows, self.every = self._rows[::2], 2 * self.every
        return self[-1]

    def column(self, name: str) -> Floats:
        """One number a step, NaN where there was none: "loss", or a figure such as "remaining"."""
        held = self._losses if name == "loss" else self._figures.get(name, array("d", [math.nan] * len(self)))
        return np.array(held, float)

    @property
    def means(self) -> npt.NDArray[np.float32]:
        """Mean mask of every group, shape (rows, groups); row k belongs to step 1 + k · `every`."""
        return np.array(self._rows, np.float32).reshape(len(self._rows), len(self.groups))

    def state_dict(self) -> dict[str, Any]:
        """All of it, as arrays."""
        figures = {name: self.column(name) for name in self._figures}
        return {
            "groups": list(self.groups),
            "every": self.every,
            "losses": self.column("loss"),
            "figures": figures,
            "means": self.means,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.groups, self.every = tuple(state["groups"]), state["every"]
        self._losses = array("d", state["losses"].tolist())
        self._figures = {name: array("d", v.tolist()) for name, v in state["figures"].items()}
        self._rows = list(state["means"])
