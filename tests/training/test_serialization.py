"""Checkpoints hold plain data."""

from __future__ import annotations

import numpy as np
import torch

from fxprune.training.serialization import from_plain, to_plain


def test_plain_data_comes_back() -> None:
    state = {"a": np.arange(3.0), "b": (1, [torch.ones(2), None, "x"]), 3: np.float64(0.5)}
    back = from_plain(to_plain(state))
    assert isinstance(back["a"], np.ndarray)
    assert back["a"].tolist() == [0, 1, 2]
    assert back["b"][0] == 1
    assert back["b"][1][0].tolist() == [1, 1]
    assert type(back[3]) is float
