"""How much memory a piece of work takes beyond what was held before."""

from __future__ import annotations

import ctypes
import os
import threading
from types import TracebackType
from typing import Any

import torch

STATM = "/proc/self/statm"
EVERY = 0.005  # seconds between looks at the process


class Peak:
    """Within: watches memory.  Afterwards `bytes` is the growth at its highest, None where that cannot be known.

    On a GPU that is what torch allocated, exactly.  On the CPU it is what is in use of the process's heap (glibc),
    looked at every few milliseconds; with other C libraries its resident memory (Linux only), in which memory that
    earlier work has left to be used again does not count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif os.path.exists(STATM):
            self._before = self._highest = _held()
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        elif os.path.exists(STATM):
            self._over.set()
            self._thread.join()
            self.bytes = max(self._highest, _held()) - self._before

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._highest = max(self._highest, _held())


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _names = ("a", "b", "c", "d", "mapped", "f", "g", "used", "i", "j")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def _mallinfo() -> Any:
    """glibc's account of its heap, None with other C libraries."""
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    found.restype = _Heap
    return found


_MALLINFO = _mallinfo()


def _held() -> int:
    """Bytes in use now."""
    if _MALLINFO is None:
        return _resident()
    heap = _MALLINFO()
    return int(heap.used + heap.mapped)


def _resident() -> int:
    with open(STATM, encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
