"""Time on a device: laps within one run, and models that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fxprune.planning.costs.polynomials import Floats


class Stopwatch:
    """Laps of one run, in seconds; on a GPU by events, so that nothing waits in between."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = clock(device)
        self.stamps: list[float] = []
        self.events: list[torch.cuda.Event] = []

    def stamp(self) -> None:
        """The end of a lap (and the start of the next)."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.events.append(event)
        else:
            self.stamps.append(self.clock())

    def laps(self) -> Floats:
        """Seconds between stamps."""
        if self.device.type != "cuda":
            return np.diff(self.stamps)
        synchronise(self.device)
        return np.array([a.elapsed_time(b) for a, b in zip(self.events, self.events[1:], strict=False)]) / 1e3


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds; on one CPU thread those that the thread runs, so that other processes do not count."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def synchronise(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """No gradients, and on a GPU the right device."""
    with torch.no_grad():
        if device.type == "cuda":
            with torch.cuda.device(device):
                yield
        else:
            yield


def take_turns(calls: Sequence[Callable[[], object]], device: torch.device, rounds: int = 10) -> list[list[float]]:
    """Seconds of every call in every round, the calls taking turns, after one call each that does not count.

    What else a machine does meets all of them alike: compare their minima, or medians.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    now = clock(device)
    with quiet(device):
        for k in range(rounds + 1):
            for call, times in zip(calls, seconds, strict=True):
                synchronise(device)
                start = now()
                call()
                synchronise(device)
                if k:
                    times.append(now() - start)
    return seconds
