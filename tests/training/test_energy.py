"""The energy never rises under the stated bound, and its slope is the derivative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.training.energy import Energy, State, step


@st.composite
def states(draw: st.DrawFn) -> tuple[Energy, np.ndarray, State]:
    n, seed = draw(st.integers(1, 30)), draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.01, 1, n)
    state = State(
        rng.uniform(0, 2, n),
        shares / shares.sum(),
        draw(st.floats(0, 1)),
        draw(st.floats(0, 2)),
        draw(st.floats(0, 3)),
    )
    return Energy(draw(st.floats(0.1, 50))), rng.uniform(0, 1, n), state


@settings(max_examples=200)
@given(states(), st.floats(0.001, 1.0), st.floats(0.05, 1.0))
def test_energy_never_rises(drawn: tuple[Energy, np.ndarray, State], most: float, part: float) -> None:
    """Under the stated bound on the step, with and without a cap on single entries."""
    energy, m, state = drawn
    for _ in range(20):
        new = step(energy, m, state, part / energy.lipschitz(state), most)
        assert energy.value(new, state) <= energy.value(m, state) + 1e-9
        assert np.abs(new - m).max() <= most + 1e-12
        assert new.min() >= 0
        assert new.max() <= 1
        m = new


@settings(max_examples=50)
@given(states())
def test_slope_is_the_derivative(drawn: tuple[Energy, np.ndarray, State]) -> None:
    energy, m, state = drawn
    eps = 1e-5
    for i in range(len(m)):
        ahead, behind = m.copy(), m.copy()
        ahead[i] += eps
        behind[i] -= eps
        numeric = (energy.value(ahead, state) - energy.value(behind, state)) / (2 * eps) / state.shares[i]
        assert numeric == pytest.approx(energy.slope(m, state)[i], rel=1e-4, abs=1e-4)


def test_a_step_over_the_bound_can_raise_the_energy() -> None:
    """So the bound says something."""
    state = State(np.zeros(1), np.ones(1), 0.5)
    energy, m = Energy(budget=10.0), np.array([0.6])
    assert energy.value(step(energy, m, state, 2.5 / 10.0, 1.0), state) > energy.value(m, state)


def test_the_bound_is_no_smaller_than_it_must_be() -> None:
    still = State(np.array([0.5]), np.array([1.0]), 0.5)
    assert Energy(8.0).lipschitz(still) == 8.0
    assert Energy(8.0).lipschitz(State(np.array([0.5]), np.array([1.0]), 0.5, concave=3.0)) == 14.0
