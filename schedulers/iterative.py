"""Iterative: hard cuts in rounds, with training and fresh scores between them."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.arguments import require_options
from fxprune.errors import PluginError
from fxprune.schedulers.shapes import shape
from fxprune.training.scheduler import Floats, Flow, Problem, Scheduler, Values


@dataclass(frozen=True)
class Iterative(Scheduler):
    """Cut a little more at the start of each of `rounds` rounds, up to the final ratio.

        removed(k) = ratio · f(k / rounds)   k = 1, …, rounds

    with f "linear", "cubic" (fast first, then slower: automated gradual pruning) or "exponential".  What has gone stays
    gone.  The rounds fill the first `until` of all steps, the rest trains the final network.

    Errors: PluginError for an unknown shape, or with fewer steps than rounds.
    Source: Zhu and Gupta, To Prune, or Not to Prune, ICLR workshop 2018 (cubic); Han et al., NeurIPS 2015 (rounds).

    >>> Iterative(rounds=4, shape="linear").removed(2)
    0.5
    """

    rounds: int = 10
    shape: str = "cubic"
    until: float = 0.1

    def __post_init__(self) -> None:
        require_options(self, PluginError)
        if self.rounds < 1 or not 0 < self.until <= 1:
            raise PluginError(f"rounds={self.rounds} must be at least 1, until={self.until} in (0, 1]")
        shape(self.shape)

    def removed(self, round: int) -> float:
        """Fraction of the final ratio that is gone in a round (1, …, rounds)."""
        return shape(self.shape)(round / self.rounds)

    def begin(self, problem: Problem) -> Flow:
        """A run of `rounds` cuts."""
        if problem.steps < self.rounds:
            raise PluginError(
                f"{self.rounds} rounds do not fit into steps={problem.steps}; pass a larger steps= or "
                f"Iterative(rounds={max(1, problem.steps)})"
            )
        return _Rounds(problem, self)


class _Rounds(Flow):
    def __init__(self, problem: Problem, options: Iterative) -> None:
        super().__init__(problem)
        self.options = options
        self.round = 0

    def refresh(self, values: Values) -> None:
        self.round += 1
        flat = self.problem.flat(values)
        gone = self.mask == 0
        flat = flat - (flat.max() - flat.min() + 1) * gone  # what has gone ranks before all else
        ratio = self.problem.ratio * self.options.removed(self.round)
        self.chosen, self.due = self.problem.plan(self.problem.by_group(flat), ratio), False
        self.mask = self.problem.mask(self.chosen)

    def step(self) -> Floats:
        self.taken += 1
        start = self.options.until * self.problem.steps / self.options.rounds * self.round
        self.due = self.round < self.options.rounds and self.taken + 1 > start
        return self.mask
