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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.errors import SaveError
from fxprune.scoring.free_memory import free_memory

MOST = 1 << 29  # bytes of files that stay in memory
HEAD, COUNT = 1 << 16, 200  # bytes at the beginning of a temporary file, and tensors in it that these can name
EVERY = 0.02  # seconds between looks
AHEAD = 1 << 20  # bytes that are read ahead at once
STATM = "/proc/self/statm"
_scratch: ContextVar[Scratch | None] = ContextVar("scratch", default=None)


class Pages:
    """Within, mapped files take no more of this process's memory than `MOST`, and what is read in one look."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, held: mmap.mmap) -> None:
        """Watch over one more file."""
        self._maps.append(held)

    def read_ahead(self, paths: Sequence[Path]) -> None:
        """Have the system read files into its own memory, as far as half of what is free, while other work goes on."""
        self._start(self._read_ahead, paths)

    def __enter__(self) -> Pages:
        if hasattr(mmap, "MADV_DONTNEED") and os.path.exists(STATM):
            self._start(self._watch)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=given, daemon=True))
        self._threads[-1].start()

    def _read_ahead(self, paths: Sequence[Path]) -> None:
        left, into = (free_memory(torch.device("cpu")) or 0) // 2, bytearray(AHEAD)
        with contextlib.suppress(OSError):  # who uses the file is told
            for path in paths:
                with path.open("rb", buffering=0) as file:
                    while left > 0 and not self._over.is_set() and (size := file.readinto(into)):
                        left -= size

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


@dataclass(frozen=True)
class Place:
    """Where in its file a tensor lies."""

    start: int
    size: int


@dataclass
class Part:
    """One temporary file without a name: `HEAD` bytes for what a file of tensors begins with, then tensors alone.

    Attributes:
        held: address of a tensor's first byte in memory -> where it lies; maps stay, so that no address comes twice.
    """

    file: IO[bytes]
    end: int = HEAD
    held: dict[int, Place] = field(default_factory=dict)

    def become(self, path: Path, head: bytes) -> bool:
        """Give the file a beginning and a name; False where the system cannot, and nothing has happened."""
        if len(head) > HEAD:
            return False
        descriptor = self.file.fileno()
        try:
            os.pwrite(descriptor, head, 0)
            folder = os.open(path.parent, os.O_RDONLY)
            try:  # with a folder given, Python follows the link to the file
                os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder)
            finally:
                os.close(folder)
        except OSError:
            return False
        return True


class Scratch:
    """Temporary files that tensors are moved to, laid out so that a file of tensors may come of each.

    Args:
        folder: on a disk with room for them.
        pages: watch over them.
        size: bytes of tensors in one file, or one tensor.
    """

    def __init__(self, folder: Path, pages: Pages, size: int = MOST) -> None:
        self._folder, self._pages, self._size = folder, pages, size
        self.parts: list[Part] = []

    def begin(self) -> None:
        """What has been moved here is not wanted any more: another model is cut."""
        self.parts.clear()

    def _room(self, size: int, itemsize: int) -> Part:
        last = self.parts[-1] if self.parts else None
        full = last is None or len(last.held) >= COUNT or last.end % itemsize or last.end + size > HEAD + self._size
        if last is None or full:
            self.parts.append(last := Part(_unnamed(self._folder)))
        return last

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
        try:
            part = self._room(size, dtype.itemsize)
            file, place = part.file.fileno(), part.end
            at, first = place, place // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            os.posix_fallocate(file, place, size)  # told now, and not when another page is written
            for piece in pieces:
                data = np.ascontiguousarray(piece).data.cast("B")
                while len(data):
                    done = os.pwrite(file, data, at)
                    data, at = data[done:], at + done
            held = mmap.mmap(file, place + size - first, offset=first)
        except OSError as e:
            raise SaveError(f"the folder for what is cut has no room for another {size:,} bytes: {e}") from e
        part.end = place + size
        self._pages.add(held)
        tensor = tensor_in(held, dtype, shape, place - first)
        part.held[tensor.data_ptr()] = Place(place, size)
        return tensor


def _unnamed(folder: Path) -> IO[bytes]:
    """A file without a name, which may be given one where the system can."""
    if hasattr(os, "O_TMPFILE"):
        with contextlib.suppress(OSError):  # not every file system has such files
            return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b", buffering=0)
    return tempfile.TemporaryFile(dir=folder, buffering=0)


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
