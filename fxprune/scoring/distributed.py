"""Sums over the processes of a distributed run; alone, a process is the whole of it.

Every process scores its own batches and all of them must call `score`: the sums are collective operations.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether `torch.distributed` runs, with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def first() -> bool:
    """Whether this is the process that shows progress."""
    return not several() or dist.get_rank() == 0


def number() -> int:
    """How many processes there are."""
    return dist.get_world_size() if several() else 1


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its sum over all processes, which must pass equal shapes in equal order."""
    if several():
        for t in tensors:
            dist.all_reduce(t)


def total(number: float, device: torch.device) -> float:
    """A number's sum over all processes."""
    return _reduced(number, device, dist.ReduceOp.SUM) if several() else number


def largest(number: float, device: torch.device) -> float:
    """The largest of all processes' numbers."""
    return _reduced(number, device, dist.ReduceOp.MAX) if several() else number


def _reduced(number: float, device: torch.device, how: dist.ReduceOp.RedOpType) -> float:
    held = torch.tensor(number, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    dist.all_reduce(held, how)
    return float(held)
