"""Sums over the processes of a distributed run; alone, a process is the whole of it.

Every process scores its own batches and all of them must call `score`: the sums are collective operations.

Within `parts` the batches of the same number are the parts of one, in the order of the processes.  What a loss draws
for a sample, it then draws by the sample's place in the whole (`place_of`), so that it is the same however it is split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

from fxprune.errors import InputsError

_parts: ContextVar[bool] = ContextVar("parts", default=False)
_place: ContextVar[tuple[int, int] | None] = ContextVar("place", default=None)
GONE = ("closed by peer", "reset by peer", "broken pipe", "timed out", "gloo", "nccl", "store")  # how torch tells it


def several() -> bool:
    """Whether `torch.distributed` runs, with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def first() -> bool:
    """Whether this is the process that shows progress."""
    return not several() or dist.get_rank() == 0


def rank() -> int:
    """Which of the processes this is."""
    return dist.get_rank() if several() else 0


def number() -> int:
    """How many processes there are."""
    return dist.get_world_size() if several() else 1


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its sum over all processes, which must pass equal shapes in equal order."""
    if several():
        for t in tensors:
            with told():
                dist.all_reduce(t)


def total(number: float, device: torch.device) -> float:
    """A number's sum over all processes."""
    return _reduced(number, device, dist.ReduceOp.SUM) if several() else number


def largest(number: float, device: torch.device) -> float:
    """The largest of all processes' numbers."""
    return _reduced(number, device, dist.ReduceOp.MAX) if several() else number


def _reduced(number: float, device: torch.device, how: dist.ReduceOp.RedOpType) -> float:
    held = torch.tensor(number, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    with told():
        dist.all_reduce(held, how)
    return float(held)


def gathered(mine: Sequence[int]) -> list[list[int]]:
    """The lists of numbers of all processes, in their order."""
    found: list[list[int]] = [[] for _ in range(number())]
    with told():
        dist.all_gather_object(found, list(mine))
    return found


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Within, an error of torch's because another process is gone is one of ours.

    Raises:
        InputsError: in its place.
    """
    try:
        yield
    except RuntimeError as e:
        if not several() or not any(sign in str(e).lower() for sign in GONE):
            raise
        raise InputsError(
            f"process {dist.get_rank()} of {number()} has lost another one, which has failed or been killed, or has "
            "not come to the same point: the first error in the output of all processes tells why; start them all "
            "again (a run with checkpoint_dir= goes on from its last checkpoint)"
        ) from e


# ---- parts of one batch ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def parts() -> Iterator[None]:
    """Within, the batches of the same number in all processes are the parts of one."""
    token = _parts.set(True)
    try:
        yield
    finally:
        _parts.reset(token)


def split() -> bool:
    """Whether batches are parts."""
    return _parts.get() and several()


@contextlib.contextmanager
def placed(place: tuple[int, int] | None) -> Iterator[None]:
    """Within, the batch at hand starts at such a place of a whole of so many samples."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def place_of(samples: int) -> tuple[int, int]:
    """Where a batch of so many samples starts in the whole that it is a part of, and how many that has."""
    return _place.get() or (0, samples)


def mean_of_parts(values: Tensor, samples: int) -> Tensor:
    """Means over a part's samples, made those over the whole."""
    place = _place.get()
    if place is None or not several():
        return values
    whole = values * samples / place[1]
    add_up([whole])
    return whole
