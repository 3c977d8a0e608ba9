"""Peak memory is the growth of the process at its highest, whatever else the process does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from fxprune.studies import peak_memory
from fxprune.studies.peak_memory import Peak

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def statm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for /proc/self/statm, whose second number is the process's resident memory in pages."""
    monkeypatch.setattr(peak_memory, "STATM", str(tmp_path / "statm"))
    monkeypatch.setattr(peak_memory, "_MALLINFO", None)  # as with a C library that tells nothing of its heap
    return tmp_path / "statm"


def resident(statm: Path, pages: int) -> None:
    new = statm.with_suffix(".new")
    new.write_text(f"99999 {pages} 7 1 0 3 0\n", encoding="ascii")
    new.replace(statm)  # whole at any moment: it is being read


def test_memory_is_the_growth_at_its_highest(statm: Path) -> None:
    resident(statm, 100)
    with Peak(torch.device("cpu")) as peak:
        resident(statm, 700)
        while peak._highest < 700 * PAGE:  # until it has looked
            time.sleep(0.001)
        resident(statm, 300)
    assert peak.bytes == 600 * PAGE


def test_what_is_held_at_the_end_counts_without_a_look_in_between(statm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "EVERY", 1e6)
    resident(statm, 100)
    with Peak(torch.device("cpu")) as peak:
        resident(statm, 250)
    assert peak.bytes == 150 * PAGE


def test_where_the_system_does_not_tell_nothing_is_told(statm: Path) -> None:
    with Peak(torch.device("cpu")) as peak:
        pass
    assert peak.bytes is None


@pytest.mark.skipif(peak_memory._MALLINFO is None, reason="no glibc here")
def test_memory_that_was_left_to_be_used_again_counts() -> None:
    """Blocks that the heap keeps, below the size at which it asks the system for more: resident all along."""
    found = []
    for _ in range(2):
        with Peak(torch.device("cpu")) as peak:
            held = [torch.ones(4096) for _ in range(1000)]
            while peak._highest < peak._before + 16_000_000:
                time.sleep(0.001)
            del held
        found.append(peak.bytes)
    assert all(b is not None and 16_000_000 < b < 24_000_000 for b in found)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_the_real_file_is_of_that_form() -> None:
    assert 0 < peak_memory._resident() < 2**50
