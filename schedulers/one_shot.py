"""One shot: the whole cut at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.training.scheduler import Floats, Flow, Problem, Scheduler, Values


@dataclass(frozen=True)
class OneShot(Scheduler):
    """Score once, cut to the final ratio in the first step, and stay there.

        m(t) = m_final  for t ≥ 1

    Raises nothing.  `fxprune.prune` cuts before it trains, and without `steps` does not train at all.

    Source: the usual practice where fine-tuning follows once, as in Fang et al., DepGraph, CVPR 2023.
    """

    at_once: ClassVar[bool] = True

    def begin(self, problem: Problem) -> Flow:
        """A run that cuts in its first step."""
        return _Cut(problem)


class _Cut(Flow):
    def refresh(self, values: Values) -> None:
        self.chosen, self.due = self.problem.plan(values), False

    def step(self) -> Floats:
        self.taken += 1
        self.mask = self.problem.mask(self.plan)
        return self.mask
