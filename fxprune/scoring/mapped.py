"""Tensors that lie in files and are read where they are used, so that a network may be larger than memory.

What has been read stays in memory only until it is more than `MOST`: a thread then lets the pages go, and the next read
brings them back from the disk.  Linux only; elsewhere the system decides what stays.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.errors import SaveError

MOST = 1 << 29  # bytes of files that stay in memory
EVERY = 0.02  # seconds between looks
STATM = "/proc/self/statm"
_scratch: ContextVar[Scratch | None] = ContextVar("scratch", default=None)


class Pages:
    """Within, mapped files take no more of this process's memory than `MOST`, and what is read in one look."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def add(self, held: mmap.mmap) -> None:
        """Watch over one more file."""
        self._maps.append(held)

    def __enter__(self) -> Pages:
        if hasattr(mmap, "MADV_DONTNEED") and os.path.exists(STATM):
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        start = _of_files()
        while not self._over.wait(EVERY):
            if _of_files() - start > MOST:
                for held in list(self._maps):
                    held.madvise(mmap.MADV_DONTNEED)


def _of_files() -> int:
    """Bytes of files that are in this process's memory."""
    with open(STATM, encoding="ascii") as file:
        return int(file.read().split()[2]) * mmap.PAGESIZE


def mapped(path: Path, pages: Pages) -> mmap.mmap:
    """A file, read where it is used; what is written to it in memory is lost, and never reaches the file.

    Raises:
        SaveError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as e:
        raise SaveError(f"{path} cannot be read: {type(e).__name__}: {e}") from e
    pages.add(held)
    return held


def tensor_in(held: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
    """A tensor of a mapped file."""
    count = torch.Size(shape).numel()
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(held, dtype=dtype, count=count, offset=offset).view(shape)


class Scratch:
    """A temporary file that tensors are moved to.

    Args:
        folder: on a disk with room for them.
        pages: watch over it.
    """

    def __init__(self, folder: Path, pages: Pages) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - lives with the tensors
        self._pages, self._end = pages, 0

    def moved(self, tensor: Tensor) -> Tensor:
        """The same tensor, in the file.

        Raises:
            SaveError: the disk refuses.
        """
        data = tensor.detach().cpu().contiguous()
        bytes_of = data.reshape(-1).view(torch.uint8).numpy()
        return self.written([bytes_of], data.dtype, tuple(data.shape))

    def written(self, pieces: Iterable[npt.NDArray[Any]], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A tensor of the numbers in `pieces`, in the file.

        Written, not mapped and filled: that would stop at every page.

        Raises:
            SaveError: the disk refuses.
        """
        size = torch.Size(shape).numel() * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype)
        place = at = -(-self._end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            os.posix_fallocate(self._file.fileno(), place, size)  # told now, and not when another page is written
            for piece in pieces:
                data = np.ascontiguousarray(piece).data.cast("B")
                while len(data):
                    done = os.pwrite(self._file.fileno(), data, at)
                    data, at = data[done:], at + done
            held = mmap.mmap(self._file.fileno(), size, offset=place)
        except OSError as e:
            raise SaveError(f"the folder for what is cut has no room for another {size:,} bytes: {e}") from e
        self._end = place + size
        self._pages.add(held)
        return tensor_in(held, dtype, shape, 0)


@contextlib.contextmanager
def cut_to(scratch: Scratch) -> Iterator[None]:
    """Within, tensors that lose channels are made in a file."""
    token = _scratch.set(scratch)
    try:
        yield
    finally:
        _scratch.reset(token)


def scratch() -> Scratch | None:
    """Where cut tensors go; None: they stay in memory."""
    return _scratch.get()
