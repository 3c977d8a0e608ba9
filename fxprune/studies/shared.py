"""Work that several processes, of one machine or of several with one file system, do together through one folder.

Each starts the same call, one after the other or at once; nobody tells them apart.  A piece of work is its taker's
while that one holds a lock, which the system frees when the process ends, however it does: a piece whose taker was
killed is taken by another, and a call that starts later goes on with what is left.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from fxprune.scoring import distributed as ranks

T = TypeVar("T")
LOCKS, FILE = "running", "file.lock"
PAUSE = 0.2  # seconds between looks at what other processes do


def alone(folder: Path | None) -> AbstractContextManager[object]:
    """Within, no other process reads or writes the files of a folder."""
    if folder is None:
        return nullcontext()
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    return FileLock(folder / LOCKS / FILE)


def shared(folder: Path | None, pieces: Mapping[str, T], done: Callable[[T], bool]) -> Iterator[T]:
    """The pieces of work that are this process's, one after the other; ends when all are done, whoever did them.

    Processes of one group (`torch.distributed`), which compute each piece together, take all of them in order.

    Args:
        folder: where the results go; None: they are this process's alone.
        pieces: by a name that is the same in all processes.
        done: whether the results of a piece are there.
    """
    if folder is None or ranks.several():
        yield from (piece for piece in pieces.values() if not done(piece))
        return
    left = dict(pieces)
    while left:
        before = len(left)
        for name, piece in list(left.items()):
            if not done(piece):
                lock = FileLock(folder / LOCKS / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                try:
                    if not done(piece):  # it may have been, since we looked
                        yield piece
                finally:
                    lock.release()
            del left[name]
        if left and len(left) == before:
            time.sleep(PAUSE)
