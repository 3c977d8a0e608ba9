"""A run's history stays short."""

from __future__ import annotations

import numpy as np

from fxprune.reporting.history import ROWS, History
from fxprune.training.serialization import from_plain, to_plain


def test_a_long_history_is_thinned_out() -> None:
    history = History(["a", "b"])
    for step in range(3 * ROWS):
        history.add(None, {"remaining": step} if step else {}, [step, -step])
    assert ROWS / 2 <= len(history.means) <= ROWS
    assert history.means[:, 0].tolist() == [k * history.every for k in range(len(history.means))]
    assert history[0].figures == {}
    assert history[-1].loss is None
    assert history[-1].figures == {"remaining": 3 * ROWS - 1}
    other = History()
    other.load_state_dict(from_plain(to_plain(history.state_dict())))
    assert other[:] == history[:]
    assert np.array_equal(other.means, history.means)
