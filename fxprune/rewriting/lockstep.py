"""Several runs side by side, each halted at the same layers: what all of them read there is known before one goes on.

Every run is a thread, of which only one is awake at a time; torch's random numbers are each run's own.  So a layer can
be fitted to all batches in the middle of one pass over them, and what comes after it sees the fitted layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.graph.modules import unfused

Halt: TypeAlias = Callable[[Hashable, Any], None]
Act: TypeAlias = Callable[[Hashable, dict[int, Any]], None]


class Stopped(BaseException):
    """Ends a run that is no longer wanted."""


@dataclass(eq=False)
class Run:
    """A function in a thread, which it halts by `halt(key, value)`; awake only within `wake`."""

    function: Callable[[Halt], None]
    around: Callable[[], AbstractContextManager[Any]]  # what holds where it was made, and not in a thread by itself
    devices: Sequence[int] = ()  # whose random numbers it draws, beside the CPU's
    key: Hashable = None
    value: Any = None
    steps: int = 0
    over: bool = False
    error: BaseException | None = None
    unwanted: bool = False
    mine: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    theirs: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    random: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=copy_context().run, args=(self._work,), daemon=True)
        self.thread.start()

    def wake(self) -> None:
        """Let it go on, and wait until it halts or is over."""
        self.value = None
        outside = self._drawn()
        if self.random:
            self._draws(self.random)
        self.mine.release()
        self.theirs.acquire()
        self.random = self._drawn()
        self._draws(outside)
        self.steps += 1

    def stop(self) -> None:
        """End it, wherever it is."""
        if not self.over:
            self.unwanted = True
            self.wake()
        self.thread.join()

    def _work(self) -> None:
        self.mine.acquire()
        try:
            with self.around():
                if not self.unwanted:
                    self.function(self._halt)
        except Stopped:
            pass
        except BaseException as e:  # noqa: BLE001  raised where it was woken
            self.error = e
        self.over = True
        self.theirs.release()

    def _halt(self, key: Hashable, value: Any) -> None:
        self.key, self.value = key, value
        self.theirs.release()
        self.mine.acquire()
        if self.unwanted:
            raise Stopped

    def _drawn(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.devices)]

    def _draws(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


def in_step(functions: Sequence[Callable[[Halt], None]], act: Act, devices: Sequence[int] = ()) -> None:
    """Run all functions; `act(key, {number of the function: value})` is called where those that are the least far halt.

    Raises:
        Whatever a function raises, the first of them.
    """
    runs: list[Run] = []
    around = _settings()
    with unfused():  # observers switch that off and on again, each for itself: on only when the last is done
        try:
            for function in functions:
                runs.append(Run(function, around, devices))
                _woken(runs[-1])
            while live := [r for r in runs if not r.over]:
                least = min(live, key=lambda r: r.steps)
                here = {i: r for i, r in enumerate(runs) if not r.over and r.key == least.key}
                act(least.key, {i: r.value for i, r in here.items()})
                for r in here.values():
                    _woken(r)
        finally:
            for r in runs:
                r.stop()


def _woken(run: Run) -> None:
    run.wake()
    if run.error is not None:
        raise run.error


def _settings() -> Callable[[], AbstractContextManager[Any]]:
    """What torch keeps by thread: autocast, and the device that new tensors are made on."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    cast = [(k, torch.get_autocast_dtype(k), torch.is_autocast_enabled(k)) for k in kinds]
    made_on = torch.get_default_device()
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            if current is not None:
                stack.enter_context(torch.cuda.device(current))
            if made_on.type != "cpu":
                stack.enter_context(made_on)
            for kind, dtype, enabled in cast:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            yield

    return again
