"""A batch that is too large for memory, taken in smaller parts: halves, and halves of these, until one fits.

A loss that is a mean over samples is the mean of its parts' losses, weighed by their samples; draws that hang on a
sample's place (those of the adapters' losses do) are the same in parts.  What a pass had finished when memory ran out
counts, and is not done again: nothing is lost, and nothing counts twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.errors import CriterionError
from fxprune.scoring import distributed as ranks
from fxprune.scoring.batches import batch_size, take

SIGNS = ("out of memory", "not enough memory", "can't allocate memory")
SMALLER = (
    "pass smaller batches (data=) or smaller samples, turn on the model's gradient checkpointing, load it in bfloat16, "
    "or use criterion='magnitude', which runs nothing"
)


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples of a batch: the batch's number, where they start in the whole, and the samples of that."""

    batch: Any
    number: int
    place: tuple[int, int]


Act = Callable[[Any, float, set[Any]], None]
_at_hand: ContextVar[Part | None] = ContextVar("part", default=None)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on a CPU torch raises a RuntimeError."""
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    return told or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def part_of(batch: Any) -> Part | None:
    """What a batch is a part of; None: of nothing."""
    part = _at_hand.get()
    return part if part is not None and part.batch is batch else None


@dataclass(frozen=True)
class Halving:
    """Passes over batches, in parts where memory runs out.

    Attributes:
        who: for messages.
        fits: holds the number of samples that fitted last, once a batch did not.
        note: told what was done.
    """

    who: str
    fits: dict[Any, Any]
    note: Callable[[str], None]

    def __call__(self, batch: Any, number: int, act: Act) -> None:
        """Have `act(part, share of the batch, what is done)` done for a batch, or for parts that make it up.

        `act` leaves out what is done, and adds to it what it has finished.

        Raises:
            CriterionError: not even one sample fits.
        """
        size = batch_size(batch)
        most = self.fits.get("samples", size) or 1
        for start in range(0, max(size, 1), most):
            self._taken(batch, number, act, range(start, min(start + most, size)), set())

    def _taken(self, batch: Any, number: int, act: Act, samples: range, done: set[Any]) -> None:
        size = batch_size(batch)
        done = set(done)
        try:
            with _part(batch, number, samples) as part:
                act(part, len(samples) / size if size else 1.0, done)
            return
        except Exception as e:
            if not out_of_memory(e):
                raise
            if len(samples) < 2 or ranks.several():  # other processes would wait for as many passes
                raise CriterionError(
                    f"{self.who} ran out of memory on {max(1, len(samples))} of {max(1, size)} samples of batch "
                    f"{number}: {str(e).splitlines()[0] if str(e) else type(e).__name__}; {SMALLER}"
                ) from e
        half = len(samples) // 2  # out of the handler, whose traceback holds the graph
        self.fits["samples"] = min(half, self.fits.get("samples", half))
        self.note(
            f"out of memory on {len(samples)} samples at once: batches are taken in smaller parts, whose losses are "
            "averaged"
        )
        for piece in (samples[:half], samples[half:]):
            self._taken(batch, number, act, piece, done)


@contextlib.contextmanager
def _part(batch: Any, number: int, samples: range) -> Iterator[Any]:
    """Within, these samples are at hand: the batch itself, where they are all of it."""
    size = batch_size(batch)
    if len(samples) == size:
        yield batch
        return
    part = Part(take(batch, list(samples)), number, (samples.start, size))
    token = _at_hand.set(part)
    try:
        yield part.batch
    finally:
        _at_hand.reset(token)
