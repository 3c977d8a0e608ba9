"""Batches without end, which a run can go on with at the very same point."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from fxprune.errors import InputsError
from fxprune.scoring.batches import empty
from fxprune.scoring.identity import length
from fxprune.scoring.randomness import generators, rng_state, set_rng_state


class Stream:
    """A process's share of the batches, again and again, on its device.

    A `DataLoader` is shared out by accelerate; of other iterables each process takes every n-th batch.  To go on, the
    epoch starts with the random numbers that it had then, and the batches that were used pass by unused: whatever is
    drawn at random in the data comes out the same.

    Args:
        data: batches; it must be possible to iterate it once an epoch.

    Raises:
        InputsError: it is no iterable of batches, or it gives none (any more).
    """

    def __init__(self, data: Any, accelerator: Accelerator) -> None:
        if isinstance(data, (torch.Tensor, Mapping, str)) or not isinstance(data, Iterable):
            raise InputsError(
                f"data is {'missing' if data is None else f'one {type(data).__name__}'}: steps= trains the model, so "
                "pass data=, an iterable of batches such as a DataLoader"
            )
        several = accelerator.num_processes > 1
        self.data, self.device = data, accelerator.device
        self.loader: Iterable[Any] = data
        if several and isinstance(data, DataLoader):
            self.loader = accelerator.prepare_data_loader(data)
        elif several:
            _require_enough(data, accelerator.num_processes)
            self.loader = _Share(data, accelerator.process_index, accelerator.num_processes)
        self.epoch = self.taken = 0
        self._iterator: Iterator[Any] | None = None
        self._start: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._begin()
        for _ in range(2):
            assert self._iterator is not None
            for batch in self._iterator:
                self.taken += 1
                if empty(batch):
                    raise InputsError(f"data gives an empty batch: {self.where}; leave it out")
                return send_to_device(batch, self.device)
            if not self.taken:
                break
            self.epoch, self.taken, self._start = self.epoch + 1, 0, {}
            self._begin()
        raise InputsError(
            f"data has no batch left after {self.epoch} epochs; pass something that can be iterated again and again, "
            "such as a list or a DataLoader (a generator runs only once)"
        )

    @property
    def where(self) -> str:
        """The last batch, as messages name it."""
        return f"batch {self.taken} of epoch {self.epoch + 1}"

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"epoch": self.epoch, "taken": self.taken, "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the batches pass by at the next one."""
        self.epoch, self.taken, self._start = state["epoch"], state["taken"], dict(state["start"])
        self._iterator = None

    def _begin(self) -> None:
        """Start the epoch; pass by what has been taken of it."""
        own = generators(self.data)
        if not self._start:
            self._start = {"rng": rng_state(), "own": [g.get_state() for g in own]}
            self._iterator = iter(self.loader)
            return
        now = rng_state()
        set_rng_state(self._start["rng"])
        for g, held in zip(own, self._start["own"], strict=True):
            g.set_state(held)
        self._iterator = iter(self.loader)
        passed = sum(1 for _ in itertools.islice(self._iterator, self.taken))
        set_rng_state(now)
        if passed < self.taken:
            raise InputsError(f"data had {self.taken} batches in this epoch and now has {passed}; resume with the same")


def _require_enough(data: Iterable[Any], processes: int) -> None:
    """Raise in every process alike, where one of them would have no batch."""
    if (batches := length(data)) is not None and batches < processes:
        raise InputsError(
            f"data holds {batches} batches for {processes} processes, each of which takes whole batches; pass at least "
            f"{processes} (smaller ones), or start fewer processes"
        )


class _Share:
    """Every n-th batch."""

    def __init__(self, data: Iterable[Any], first: int, step: int) -> None:
        self.data, self.first, self.step = data, first, step

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.data, self.first, None, self.step)
