"""Trials in forked processes that may hang, take all memory, or run what they should not: seen from outside.

A process takes many trials, since importing torch takes longer than most of them.  It is ended, and the rest goes to a
new one, when a trial works for longer than `SECONDS` of its own time or waits for longer than `PATIENCE`.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz.trials import Outcome

SECONDS = 10.0  # of a trial's own processor time
PATIENCE = 90.0  # of waiting for something that never comes, on a busy machine
MEMORY = 2**30  # bytes over what the process had before
MOST = 3 * 2**30  # where the system stops it
BATCH = 100
Trial = Callable[[int], Outcome]

_REACHED = """subprocess.Popen os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty socket.connect
socket.getaddrinfo socket.gethostbyname socket.bind ctypes.dlopen pickle.find_class urllib.Request builtins.input"""
REACHED = frozenset(_REACHED.split())


class Watch:
    """What an audit hook saw of a folder: its code run or compiled, programs, the network."""

    def __init__(self) -> None:
        self.folder, self.seen = "", []
        sys.addaudithook(self._saw)

    def _saw(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event in REACHED:
            self.seen.append(f"{event} {str(args)[:100]}")
        elif event == "exec" and self.folder in str(getattr(args[0], "co_filename", "")):
            self.seen.append(f"exec {args[0].co_filename}")
        elif event == "compile" and self.folder in str(args[1]):
            self.seen.append(f"compile {args[1]}")
        elif event == "import" and self.folder in str(args[1]):
            self.seen.append(f"import {args[1]}")


def grown() -> int:
    """The largest size in memory since `restart`, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


def restart() -> int:
    """Count the largest size anew; the size now."""
    Path("/proc/self/clear_refs").write_text("5")
    return grown()


def trials(numbers: Sequence[int], trial: Trial, prepare: Callable[[], None] = lambda: None) -> Iterator[Outcome]:
    """The outcomes of all trials, by number; of one that ended its process, what ended it."""
    left = list(numbers)
    while left:
        batch, left = left[:BATCH], left[BATCH:]
        while batch:
            told = 0
            for outcome in _in_a_process(batch, trial, prepare):
                yield outcome
                told += 1
            batch = batch[told:]


def _in_a_process(numbers: Sequence[int], trial: Trial, prepare: Callable[[], None]) -> Iterator[Outcome]:
    """Outcomes until the process ends; if it does not end by itself, the last one says why."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        _work(there, numbers, trial, prepare)
    os.close(there)
    told, reason = 0, ""
    try:
        with os.fdopen(here, "rb", buffering=0) as pipe:
            for line in _lines(pipe, child):
                if line is None:
                    reason = "hang"
                    break
                yield Outcome(**json.loads(line))
                told += 1
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if told < len(numbers):
        how = reason or "raw"
        yield Outcome(numbers[told], "ended", how, f"its process ended with status {status}" if not reason else "")


def _work(pipe: int, numbers: Sequence[int], trial: Trial, prepare: Callable[[], None]) -> None:
    try:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MOST, size + MOST))
        prepare()
        for number in numbers:
            os.write(pipe, json.dumps(asdict(trial(number))).encode() + b"\n")
    except BaseException as e:  # noqa: BLE001 - the parent tells it
        print(f"trial failed: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(3)
    os._exit(0)


def _lines(pipe: Any, child: int) -> Iterator[bytes | None]:
    """Lines from a process; None where none comes."""
    buffer, began, worked = b"", time.monotonic(), _worked(child)
    while True:
        if select.select([pipe], [], [], 0.5)[0]:
            more = os.read(pipe.fileno(), 2**16)
            if not more:
                return
            buffer += more
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                yield line
                began, worked = time.monotonic(), _worked(child)
        elif _worked(child) - worked > SECONDS or time.monotonic() - began > PATIENCE:
            yield None
            return


def _worked(child: int) -> float:
    """Seconds of processor time that a process has had."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
