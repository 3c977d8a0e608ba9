"""One shot: the whole cut at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OneShot:
    """Prune to the final ratio in the first step, and stay there.

        f(step, total) = 1

    A scheduler is called as `scheduler(step, total)` with step = 0, ..., total − 1 and returns the fraction f of the
    final ratio that is to be gone after that step; the last step's is 1.  Here one step does it all: score, plan and
    rewrite run once.  Raises nothing.

    Source: the usual practice where fine-tuning follows once, as in Fang et al., DepGraph, CVPR 2023.

    >>> OneShot()(0, 1)
    1.0
    """

    def __call__(self, step: int, total: int) -> float:
        """Fraction of the final ratio after `step`: always all of it."""
        return 1.0
