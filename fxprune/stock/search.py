"""Which configs: from the given one down, the tie next that loses the least score for the cost that goes.

Steps are large at first (an eighth of an entry) and halve whenever none fits below the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.graph.labels import Ints
from fxprune.planning.costs.polynomials import Floats
from fxprune.stock.entries import Number, Path
from fxprune.stock.oracle import Oracle, Refusal
from fxprune.stock.ties import Tie, narrowed

LEVELS = 8  # steps from an entry to nothing, at first
FURTHER = (1, 2, 3, 4, 6, 8)  # multiples of a step that are tried where the constructor does not take it


@dataclass(frozen=True)
class State:
    """A config on the way: entries that changed, the widths that follow, the score that is lost, the share that goes."""

    changes: Mapping[Path, Number]
    widths: Ints
    harm: float
    share: float


@dataclass(frozen=True)
class Search:
    """What a search goes by.

    Attributes:
        share: of the cost that goes, for changes and their widths.
        least: channels that each group keeps at least.
        harm: for each group the score that is lost with its 0, 1, 2, ... lowest channels.
        multiple: of which the width of every group that narrows is one.
    """

    oracle: Oracle
    ties: Sequence[Tie]
    share: Callable[[Mapping[Path, Number], Ints], float]
    least: Ints
    harm: Sequence[Floats]
    multiple: int = 1

    def near(self, asked: float) -> list[State]:
        """The states passed that are nearest to a share, the nearest first."""
        passed = [start := State({}, self.oracle.sizes, 0.0, 0.0)]
        state, size = start, 1.0 / LEVELS
        while True:
            found = [m for tie in self.ties if (m := self._moved(state, tie, size)) is not None]
            passed += found
            below = [m for m in found if m.share <= asked + 1e-9]
            if below:
                state = min(below, key=lambda m: (m.harm - state.harm) / (m.share - state.share))
            elif any(self._step(tie, size) > 1 for tie in self.ties):
                size /= 2
            else:
                break
        return sorted(passed, key=lambda s: (abs(s.share - asked), s.harm))

    def most(self) -> float:
        """The largest share that can be reached."""
        return max(s.share for s in self.near(1.0))

    def _step(self, tie: Tie, size: float) -> int:
        """Steps of a tie that a move takes."""
        if isinstance(tie.values[0], float):
            return max(1, int(size * int(self.oracle.sizes[list(tie.groups)].max())))
        return max(1, int(size * float(tie.values[0]) / float(tie.steps[0])))

    def _moved(self, state: State, tie: Tie, size: float) -> State | None:
        """The state after a tie has shrunk by a step, or by the next multiple of it that the constructor takes."""
        once = self._step(tie, size)
        for times in FURTHER:
            changes = {**state.changes, **self._lower(state, tie, once * times)}
            if any(v <= 0 for v in changes.values()):
                return None
            widths = self.oracle.widths(changes)
            if isinstance(widths, Refusal) or not self._allowed(state.widths, widths):
                continue
            share = self.share(changes, widths)
            if share > state.share + 1e-12:
                harm = sum(float(h[n - w]) for h, n, w in zip(self.harm, self.oracle.sizes, widths, strict=True))
                return State(changes, widths, harm, share)
        return None

    def _lower(self, state: State, tie: Tie, steps: int) -> dict[Path, Number]:
        now = {p: state.changes.get(p, v) for p, v in zip(tie.entries, tie.values, strict=True)}
        if isinstance(tie.values[0], float):
            width = int(state.widths[list(tie.groups)].max())
            return {p: narrowed(float(v), width, steps) for p, v in now.items()}
        return {p: v - s * steps for (p, v), s in zip(now.items(), tie.steps, strict=True)}

    def _allowed(self, before: Ints, widths: Ints) -> bool:
        """Whether nothing grows, nothing falls below what is to stay, and what narrows keeps to the multiple."""
        narrower = widths < self.oracle.sizes
        return bool(
            (widths <= before).all() and (widths >= self.least).all() and (widths[narrower] % self.multiple == 0).all()
        )
