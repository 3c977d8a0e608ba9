"""Batches without end, which a run can go on with at the very same point."""

from __future__ import annotations

import itertools
import warnings
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
        self.processes, self.rank = accelerator.num_processes, accelerator.process_index
        several = self.processes > 1
        self.data, self.device = data, accelerator.device
        self.loader: Iterable[Any] = data
        if several and isinstance(data, DataLoader):
            self.loader = accelerator.prepare_data_loader(data)
        elif several:
            _require_enough(data, accelerator.num_processes)
            self.loader = _Share(data, accelerator.process_index, accelerator.num_processes)
        self.step = _samples_a_step(data, accelerator)
        self.epoch = self.taken = 0
        self.regrouped = False
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
        if not self.epoch:
            raise InputsError(f"data has no batch{self._too_few()}")
        raise InputsError(
            f"data has no batch left after {self.epoch} epochs; pass something that can be iterated again and again, "
            "such as a list or a DataLoader (a generator runs only once)"
        )

    def _too_few(self) -> str:
        """Why there may be no batch at all, and what to do."""
        short = "; pass larger data" if length(self.data) else "; pass an iterable of at least one"
        dropped = ", or leave drop_last=True out" if getattr(self.data, "drop_last", False) else ""
        if self.processes == 1:
            return f"{short}{dropped} (a generator runs only once)"
        return (
            f" for process {self.rank} of {self.processes}, each of which takes whole batches: pass smaller ones or "
            f"more of them{dropped}, or start fewer processes"
        )

    @property
    def where(self) -> str:
        """The last batch, as messages name it."""
        return f"batch {self.taken} of epoch {self.epoch + 1}"

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"epoch": self.epoch, "taken": self.taken, "start": self._start, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the batches pass by at the next one.

        Where all processes together take more or fewer samples at a time than then, at the last sample that they had
        all taken; some that they had are taken again where the numbers do not divide each other.
        """
        self.epoch, self.taken, self._start = state["epoch"], state["taken"], dict(state["start"])
        if (before := state.get("step", self.step)) != self.step:
            self.taken, self.regrouped = self.taken * before // self.step, True
            each = "samples" if isinstance(self.data, DataLoader) and self.data.batch_size else "batches"
            warnings.warn(
                f"a batch of all processes together was {before} {each} when the checkpoint was written, and now is "
                f"{self.step}: the run goes on with steps of another size, unless data has batches of another size",
                stacklevel=2,
            )
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
        if passed < self.taken and self.regrouped:  # the last batches of an epoch may have been taken twice
            self.taken = passed
        self.regrouped = False
        if passed < self.taken:
            raise InputsError(f"data had {self.taken} batches in this epoch and now has {passed}; resume with the same")


def _samples_a_step(data: Any, accelerator: Accelerator) -> int:
    """What all processes take together when each takes a batch: samples, or batches where these tell no size."""
    size = getattr(data, "batch_size", None) if isinstance(data, DataLoader) else None
    each = size if isinstance(size, int) else 1
    whole = isinstance(data, DataLoader) and getattr(accelerator, "split_batches", False)  # a batch is that of all
    return each if whole else each * accelerator.num_processes


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
