"""A folder's files are read before they are needed, but no further than the memory of the system allows."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fxprune.scoring import mapped
from fxprune.scoring.mapped import AHEAD, Pages


class File:
    """Something that opens like a path, and tells how much was read of it."""

    def __init__(self, size: int, *, missing: bool = False) -> None:
        self.data, self.missing = io.BytesIO(bytes(size)), missing
        self.data.close = lambda: None  # type: ignore[method-assign]  # it is asked where it stands

    def open(self, mode: str, buffering: int) -> Any:
        if self.missing:
            raise FileNotFoundError
        return self.data

    @property
    def read(self) -> int:
        return self.data.tell() // AHEAD


def ahead(files: list[Any]) -> None:
    with Pages() as pages:
        pages.read_ahead(files)
        pages._threads[-1].join()


@pytest.mark.parametrize(("free", "expected"), [(20, [3, 3]), (8, [3, 1]), (2, [1, 0]), (0, [0, 0]), (None, [0, 0])])
def test_half_of_the_free_memory_is_filled(
    monkeypatch: pytest.MonkeyPatch, free: int | None, expected: list[int]
) -> None:
    monkeypatch.setattr(mapped, "free_memory", lambda device: free and free * AHEAD)
    files = [File(3 * AHEAD), File(3 * AHEAD)]
    ahead(files)
    assert [f.read for f in files] == expected


def test_a_file_that_cannot_be_read_is_left_to_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "free_memory", lambda device: 20 * AHEAD)
    Pages()._read_ahead([File(AHEAD, missing=True)])  # type: ignore[list-item]


def test_it_ends_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(File):
        def readinto(self, into: bytearray) -> int:
            return len(into)

        def open(self, mode: str, buffering: int) -> Any:
            file = super().open(mode, buffering)
            file.readinto = self.readinto
            return file

    monkeypatch.setattr(mapped, "free_memory", lambda device: 1 << 100)
    with Pages() as pages:
        pages.read_ahead([Endless(1)])  # type: ignore[list-item]
    assert not any(thread.is_alive() for thread in pages._threads)
