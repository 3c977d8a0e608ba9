"""Which configs: from the given one down, the tie next that loses the least score for the cost that goes.

Steps are large at first (an eighth of an entry) and halve whenever none fits below the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
    """A config on the way: entries that changed, the widths that follow, the score lost, and the share that goes."""

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
        fits: whether channels can be chosen for widths.
    """

    oracle: Oracle
    ties: Sequence[Tie]
    share: Callable[[Mapping[Path, Number], Ints], float]
    least: Ints
    harm: Sequence[Floats]
    multiple: int = 1
    fits: Callable[[Ints], bool] = lambda _: True
    rates: dict[Tie, float] = field(default_factory=dict, init=False, repr=False)

    def near(self, asked: float) -> list[State]:
        """The states passed on the way to a share, the nearest to it first."""
        state = State({}, self.oracle.sizes, 0.0, 0.0)
        passed, size = [state], 1.0 / LEVELS
        while True:
            found = self._cheapest(state, size, asked, passed)
            if found is not None:
                state = found
            elif any(self._step(tie, size) > 1 for tie in self.ties):
                size /= 2
                self.rates.clear()
            else:
                return sorted(passed, key=lambda s: (abs(s.share - asked), s.harm))

    def _cheapest(self, state: State, size: float, asked: float, passed: list[State]) -> State | None:
        """The move below the budget that loses the least score for what goes.

        What a move loses for the cost rises on the way, so a tie whose last rate is above the best one is not asked.
        """
        best, rate = None, np.inf
        for tie in sorted(self.ties, key=lambda t: self.rates.get(t, -np.inf)):
            if self.rates.get(tie, -np.inf) >= rate:
                break
            move = self._moved(state, tie, size)
            if move is None:
                self.rates[tie] = np.inf
                continue
            passed.append(move)
            now = (move.harm - state.harm) / (move.share - state.share)
            self.rates[tie] = now if move.share <= asked + 1e-9 else np.inf
            if self.rates[tie] < rate:
                best, rate = move, now
        return best

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
            if share > state.share + 1e-12 and self.fits(widths):
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
