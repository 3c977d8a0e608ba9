"""The energy whose gradient flow a soft mask follows (our reading of Wan et al., arXiv 2501.09464).

    E(m) = −Σ cᵢ ŝᵢ mᵢ + ν·u + λ/2 · u² + κ Σ cᵢ mᵢ (1 − mᵢ)        u = Σ cᵢ mᵢ − ρ

with m ∈ [0, 1]ⁿ the mask, c > 0 the shares of the cost (Σ c = 1), ŝ the scores, ρ the cost still allowed, ν the
budget's multiplier, and κ the weight of the concave term that ends the mask at 0 and 1.  Distances are measured with
the weights c, so that the flow's speed does not depend on how dear a channel is:

    ṁᵢ = −(1/cᵢ) ∂E/∂mᵢ = ŝᵢ − ν − λ u − κ (1 − 2 mᵢ)

In that metric the slope is Lipschitz with L = λ + 2κ.  A projected Euler step of size τ ≤ 1/L (2/L at the limit), even
one whose entries are shortened one by one, does not raise E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.arguments import NOT_NEGATIVE, require_fields

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """What the energy depends on besides the mask.

    Attributes:
        scores: ŝ, shape (n,), about in [0, 1].
        shares: c, shape (n,), positive, of sum one.
        allowed: ρ, in the units of Σ c m.
        multiplier: ν.
        concave: κ ≥ 0.
    """

    scores: Floats
    shares: Floats
    allowed: float
    multiplier: float = 0.0
    concave: float = 0.0


@dataclass(frozen=True)
class Energy:
    """E and its slope.  Subclass it, or pass an object with the same three methods, for a flow of your own.

    Attributes:
        budget: λ, how stiffly the mask is held to its budget.

    >>> import numpy as np
    >>> state = State(scores=np.array([0.0, 1.0]), shares=np.array([0.5, 0.5]), allowed=0.5)
    >>> float(Energy(budget=4.0).value(np.array([1.0, 1.0]), state))
    0.0
    >>> Energy(budget=4.0).slope(np.array([1.0, 1.0]), state).tolist()  # the first channel falls, the second rises less
    [2.0, 1.0]
    """

    budget: float = 8.0

    def __post_init__(self) -> None:
        require_fields(self, budget=NOT_NEGATIVE)

    def value(self, m: Floats, state: State) -> float:
        """E(m)."""
        u = self._excess(m, state)
        held = state.multiplier * u + self.budget / 2 * u * u
        concave = state.concave * float((state.shares * m * (1 - m)).sum())
        return float(-(state.shares * state.scores * m).sum() + held + concave)

    def slope(self, m: Floats, state: State) -> Floats:
        """(1/c) ∂E/∂m, shape (n,): the flow goes against it."""
        price = state.multiplier + self.budget * self._excess(m, state)
        out: Floats = price - state.scores + state.concave * (1 - 2 * m)
        return out

    def lipschitz(self, state: State) -> float:
        """L: steps up to 1/L do not raise E."""
        return self.budget + 2 * state.concave

    def _excess(self, m: Floats, state: State) -> float:
        return float(state.shares @ m) - state.allowed


def step(energy: Energy, m: Floats, state: State, size: float, most: float) -> Floats:
    """One projected Euler step: m − size · slope, no entry moved by more than `most`, kept in [0, 1]."""
    return np.clip(m + np.clip(-size * energy.slope(m, state), -most, most), 0.0, 1.0)
