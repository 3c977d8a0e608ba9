"""Soft: a continuous mask that follows the gradient flow of an energy while the model trains."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fxprune.arguments import Kind, require_options
from fxprune.errors import PluginError
from fxprune.schedulers.shapes import shape
from fxprune.training.energy import Energy, State, step
from fxprune.training.scheduler import KEPT, Floats, Flow, Problem, Scheduler, Values

FEWEST = 20  # steps
ENERGY = Kind(
    "an fxprune.Energy, or an object with its methods",
    lambda v: all(callable(getattr(v, name, None)) for name in ("value", "slope", "lipschitz")),
)
QUARTER = 0.25  # of the batches, for scores of whole groups


@dataclass(frozen=True)
class Soft(Scheduler):
    """Progressive soft pruning: m ∈ [0, 1]ⁿ goes from ones to the final plan, and never jumps.

        ṁᵢ = ŝᵢ − ν − λ (Σ c m − ρ(t)) − κ(t) (1 − 2 mᵢ)       projected onto [0, 1]

    ŝ is the criterion's score as a quantile of the cost (which share of all prunable cost ranks below the channel);
    channels that a norm binds together share theirs.  Scores are those of the last refresh, or averages over all in
    which the past weighs `memory`.  ρ falls from 1 to 1 − ratio over the first `until` of all steps along `shape`; κ
    grows from 0 to `concave` at the same time.  With ŝ a quantile of the cost the multiplier that meets the budget is
    known: ν = 1 − ρ.  All of these change at refreshes only, of which there are `refreshes`; between them the energy
    does not rise.  At `settle` of all steps the planner chooses the feasible set nearest to the mask and exactly on
    budget, and the mask flows there; the steps that are left train what stays.

    Attributes:
        energy: an `fxprune.training.energy.Energy`, or an object with its methods.
        pace: no channel goes from one to zero in less than this share of all steps.
        coarse: a group whose channels all rank on one side of the budget's threshold is scored as one; single channels
            count in groups at the boundary only.  A mean over a group's channels is less noisy than each, so that a
            quarter of the batches kept for scoring will do.  (Fewer channels alone save nothing: the gradients
            of one channel take the same passes as those of all.)

    Errors: PluginError for options out of range, or fewer than 20 steps.
    Source: our reading of Wan et al., Pruning for Sparse Diffusion Models based on Gradient Flow, arXiv 2501.09464.
    """

    energy: Energy = field(default_factory=Energy)
    concave: float = 0.5
    refreshes: int = 8
    memory: float = 0.0
    shape: str = "cubic"
    until: float = 0.08
    settle: float = 0.1
    pace: float = 0.05
    coarse: bool = False

    def __post_init__(self) -> None:
        require_options(self, PluginError, energy=ENERGY)
        if not 0 < self.until <= self.settle or not self.settle + self.pace <= 1 or not self.pace > 0:
            raise PluginError(
                f"until={self.until}, settle={self.settle} and pace={self.pace} must satisfy 0 < until <= settle and "
                "settle + pace <= 1: the mask needs the last part to become binary"
            )
        if self.refreshes < 1 or not 0 <= self.memory < 1 or self.concave < 0:
            raise PluginError(
                f"refreshes={self.refreshes} must be at least 1, memory={self.memory} in [0, 1), "
                f"concave={self.concave} not negative"
            )
        shape(self.shape)

    def begin(self, problem: Problem) -> Flow:
        """A run along the flow."""
        if problem.steps < FEWEST:
            raise PluginError(f"a soft mask needs at least {FEWEST} steps, steps={problem.steps}; or use one_shot")
        return SoftFlow(problem, self)


class SoftFlow(Flow):
    """One run: the mask, the scores' average, and the energy's parameters since the last refresh."""

    def __init__(self, problem: Problem, options: Soft) -> None:
        super().__init__(problem)
        self.options = options
        n = len(self.mask)
        self.scores: Floats = np.zeros(n)  # of the criterion, averaged over refreshes
        self.refreshed = 0
        self.ranks: Floats = np.zeros(n)
        self.shares: Floats = np.full(n, 1.0 / n)
        self.allowed = self.multiplier = self.concave = 0.0
        self.sample = QUARTER if options.coarse else 1.0
        self.wanted = 1.0  # share of the whole cost that may be left by now

    @property
    def state(self) -> State:
        """The energy's parameters; constant between refreshes."""
        return State(self.ranks, self.shares, self.allowed, self.multiplier, self.concave)

    @property
    def most(self) -> float:
        """Largest change of an entry in one step."""
        return min(1.0, 1.0 / max(1.0, self.options.pace * self.problem.steps - 1))

    @property
    def size(self) -> float:
        """The step size 1/L."""
        return 1.0 / self.options.energy.lipschitz(self.state)

    def refresh(self, values: Values) -> None:
        problem, options = self.problem, self.options
        fresh = _standard(problem.flat(values))
        weight = options.memory if self.refreshed else 0.0
        self.scores = weight * self.scores + (1 - weight) * fresh
        self.refreshed += 1
        shares = problem.shares(self.mask)
        time = min(1.0, (self.taken + 1) / (options.until * problem.steps))
        total = shares.sum()
        self.shares = shares / total
        # the linear model of the cost at this mask, in units in which all channels together cost one
        self.wanted = 1 - problem.ratio * shape(options.shape)(time)
        allowed = float(self.shares @ self.mask) - (problem.remaining(self.mask) - self.wanted) / total
        self.allowed = float(allowed)
        self.ranks = problem.quantiles(problem.by_group(self.scores), self.shares)
        self.multiplier = float(np.clip(1 - self.allowed, 0.0, 1.0))
        self.concave = options.concave * time
        if options.coarse:
            self.ranks = _coarse(self.ranks, problem, self.multiplier)
        self.due = False

    def step(self) -> Floats:
        if self.chosen is None and self.taken >= self.options.settle * self.problem.steps:
            self._settle()
        self.mask = step(self.options.energy, self.mask, self.state, self.size, self.most)
        self.taken += 1
        settled = self.options.settle * self.problem.steps
        each = settled / self.options.refreshes
        self.due = self.taken < settled and self.taken + 1 > each * self.refreshed
        return self.mask

    def told(self) -> dict[str, float]:
        """Also the energy, until the planner has chosen: after that the scores are no scores any more."""
        told = {**super().told(), "price": self.multiplier, "allowed": self.wanted}
        if self.chosen is None:
            told["energy"] = self.options.energy.value(self.mask, self.state)
        return told

    def _settle(self) -> None:
        """The feasible set nearest to the mask becomes the target: scores that no price outweighs, up or down."""
        problem, energy = self.problem, self.options.energy
        near = self.mask + 1e-3 * np.minimum(self.ranks, 1.0)
        self.chosen = problem.plan(problem.by_group(near))
        firm = 2 * (energy.lipschitz(self.state) + 1)
        self.ranks = np.where(problem.mask(self.chosen) > 0, firm, -firm)
        self.multiplier = self.concave = 0.0


def _standard(flat: Floats) -> Floats:
    """Scores less their median, over their mean distance from it: refreshes of different scale average fairly."""
    flat = flat - np.median(flat)
    spread = np.abs(flat).mean()
    return flat / spread if spread > 0 else flat


def _coarse(ranks: Floats, problem: Problem, price: float) -> Floats:
    """One rank a group, its mean, where all its channels rank on the same side of the price."""
    ranks = ranks.copy()
    for a, b in zip(problem.starts, problem.starts[1:], strict=False):
        own = ranks[a:b]
        free = own < KEPT
        if free.any() and (own[free].max() < price or own[free].min() > price):
            own[free] = own[free].mean()
    return ranks
