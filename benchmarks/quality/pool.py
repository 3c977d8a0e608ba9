"""Processes that each make one run after the other: imports, images and dense networks are loaded once a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock, Thread
from typing import Any

Row = dict[str, Any]


class Worker:
    """A process that reads rows and writes them again with what was measured; after an error a fresh one starts."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[str] | None = None

    def run(self, row: Row) -> Row:
        """The measured row, or the row with an "error"."""
        if self.process is None:
            with self.log.open("a") as told:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, text=True
                )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(row) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        out: Row = json.loads(answer) if answer else {**row, "error": f"the process ended, see {self.log}"}
        if "error" in out:
            self.end()
        return out

    def end(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()


def serve(run: Callable[[Row], Row]) -> None:
    """Be such a process.  What is printed goes to the log, so that answers alone are read; an error ends it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        row = json.loads(line)
        try:
            out = run(row)
        except Exception as e:  # noqa: BLE001 (whatever it is, it goes into the row)
            traceback.print_exc()
            out = {**row, "error": f"{type(e).__name__}: {e}".splitlines()[0]}
        answers.write(json.dumps(out) + "\n")
        answers.flush()


def all_of(
    rows: Iterable[Row],
    workers: list[Worker],
    keep: Callable[[Row], None],
    until: float = float("inf"),
    grace: float = 0.0,
) -> None:
    """Run all rows, in their order, on whichever process is free.

    Args:
        rows: what to run.
        workers: as many runs go on at a time.
        keep: takes every row that came back, one at a time.
        until: when `time.monotonic()` says so, no run starts any more.
        grace: seconds after that, runs that go on are ended, and nothing is kept of them.
    """
    queue, lock, ended = iter(rows), Lock(), False

    def work(worker: Worker) -> None:
        while True:
            with lock:
                row = next(queue, None) if time.monotonic() < until else None
            if row is None:
                return
            out = worker.run(row)
            with lock:
                if not ended:
                    keep(out)

    threads = [Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(None if until == float("inf") else max(0.0, until + grace - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        with lock:
            ended = True
        for worker in workers:
            worker.end()
