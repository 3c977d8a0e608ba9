"""Moments at which a process is killed, interrupted, or finds its disk full.

By events: at the n-th call or return of a Python or C function, which no load of the machine moves.  By the clock: in
the middle of a call, too.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Work = Callable[[], object]
T = TypeVar("T")


def events_of(work: Work) -> int:
    """How many calls and returns there are in some work."""
    seen = [0]

    def count(*_: Any) -> None:
        seen[0] += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return seen[0]


@contextlib.contextmanager
def at_event(number: int, do: Callable[[], None]) -> Iterator[None]:
    """Within, something is done at that event of this thread."""
    left = [number]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            sys.setprofile(None)
            do()

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


def interrupt() -> None:
    """What Ctrl-C raises."""
    raise KeyboardInterrupt


def kill() -> None:
    """End this process as the system would."""
    os.kill(os.getpid(), signal.SIGKILL)


def apart(work: Callable[[], T]) -> T:
    """What some work gives, done in a forked process: where autograd has run, it runs in no fork any more.

    Raises:
        RuntimeError: the work raised.
    """
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        _end(lambda: _send(there, pickle.dumps(work())))
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        told = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the work failed by itself")
    value: T = pickle.loads(told)  # noqa: S301 - from our own fork
    return value


def _send(pipe: int, told: bytes) -> None:
    with os.fdopen(pipe, "wb") as file:
        file.write(told)


def _end(work: Work) -> NoReturn:
    """Do some work and end this process."""
    try:
        work()
    except BaseException as e:  # noqa: BLE001 - the parent tells it
        print(f"the work failed: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def killed(work: Work, moment: Callable[[Work], None]) -> bool:
    """Do some work in a forked process that is killed at a moment; whether it came to its end before.

    Raises:
        RuntimeError: the work raised.
    """
    child = os.fork()
    if child == 0:
        _end(lambda: moment(work))
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the work failed by itself")
    return os.WIFEXITED(status)


def by_events(number: int) -> Callable[[Work], None]:
    """Killed at an event."""

    def moment(work: Work) -> None:
        with at_event(number, kill):
            work()

    return moment


def by_clock(seconds: float) -> Callable[[Work], None]:
    """Killed after a while, whatever it does then."""

    def moment(work: Work) -> None:
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        work()

    return moment


def duration(work: Work) -> float:
    """Seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path | None]:
    """A file system of that many bytes; None where this process may mount none."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
