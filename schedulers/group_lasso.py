"""Group lasso, growing: the channels that will go are driven to zero by a penalty that grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxprune.arguments import require_options
from fxprune.errors import PluginError
from fxprune.training.scheduler import Floats, Flow, Problem, Scheduler, Values


@dataclass(frozen=True)
class GroupLasso(Scheduler):
    """Sparse training as a baseline: choose once, then shrink the chosen channels' weights by a growing decay.

        w_c ← (1 − η δ_c(t)) w_c,   δ_c(t) = most · t / (until · steps)   for channels c that will go, else 0

    after each optimizer step, with η = 1 (the decay is not multiplied by the learning rate).  At `until` of all steps
    the channels are cut; what is left of them is then about zero.

    Errors: PluginError for options out of range.
    Source: Wang et al., Neural Pruning via Growing Regularization, ICLR 2021; group-wise as in Fang et al., DepGraph,
    CVPR 2023.
    """

    most: float = 0.1
    until: float = 0.7

    def __post_init__(self) -> None:
        require_options(self, PluginError)
        if not 0 < self.most < 1 or not 0 < self.until <= 1:
            raise PluginError(f"most={self.most} must be in (0, 1), until={self.until} in (0, 1]")

    def begin(self, problem: Problem) -> Flow:
        """A run that shrinks, then cuts."""
        return _Shrinking(problem, self)


class _Shrinking(Flow):
    def __init__(self, problem: Problem, options: GroupLasso) -> None:
        super().__init__(problem)
        self.options = options

    def refresh(self, values: Values) -> None:
        self.chosen, self.due = self.problem.plan(values), False

    def step(self) -> Floats:
        self.taken += 1
        kept = self.problem.mask(self.plan)
        time = self.taken / (self.options.until * self.problem.steps)
        if time >= 1:
            self.mask, self.decay = kept, None
        else:
            self.decay = np.where(kept > 0, 0.0, self.options.most * time)
        return self.mask
