"""The random numbers of python, numpy and torch: their state, and scopes that leave it as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


def rng_state() -> dict[str, Any]:
    """The states of the random numbers of python, numpy and torch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Go back to what `rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def same_start() -> Iterator[None]:
    """Within, all three start from the same seed; afterwards they are as before."""
    was = rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    try:
        yield
    finally:
        set_rng_state(was)


class Draws:
    """Random numbers of their own for what runs within, which go on where they were at the last time.

        draws = Draws(data)
        with draws: ...       here they go on; outside nothing is drawn

    Args:
        data: a DataLoader, whose own generators go along; `rewind` sets them back too.
    """

    def __init__(self, data: Any = None) -> None:
        self._own = generators(data)
        self._first: dict[str, Any] = {"rng": rng_state(), "own": [g.get_state() for g in self._own]}
        self._now = self._first["rng"]

    def rewind(self) -> None:
        """Back to the start."""
        self._now = self._first["rng"]
        for g, state in zip(self._own, self._first["own"], strict=True):
            g.set_state(state)

    def __enter__(self) -> None:
        self._outside = rng_state()
        set_rng_state(self._now)

    def __exit__(self, *error: object) -> None:
        self._now = rng_state()
        set_rng_state(self._outside)


def generators(data: Any) -> list[torch.Generator]:
    """The random generators that a DataLoader and its samplers own."""
    if not isinstance(data, DataLoader):
        return []
    sampler = getattr(data, "sampler", None)
    parts = (data, sampler, getattr(getattr(data, "batch_sampler", None), "sampler", None))
    found = [getattr(p, "generator", None) for p in parts]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
