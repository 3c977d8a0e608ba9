"""The table of versions: a row for each pair, put between a page's comments."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
found = importlib.util.spec_from_file_location("compat_run", ROOT / "benchmarks" / "compat" / "run.py")
assert found
assert found.loader
compat = importlib.util.module_from_spec(found)
found.loader.exec_module(compat)

ROWS = [
    {"python": "3.9.1", "torch": "2.11.0", "result": "passed: 3 passed", "date": "2026-01-01"},
    {"python": "3.13.0", "torch": "2.9.1", "result": "failed: 1 failed, 2 passed", "date": "2026-01-02"},
]


def test_rows_go_between_the_comments_and_nothing_else_moves(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Versions\n\n{compat.BEGIN}\nold\n{compat.END}\n\nMore.\n")
    compat.into(page, compat.table(ROWS))
    text = page.read_text()
    assert text.startswith(f"# Versions\n\n{compat.BEGIN}\n| python | torch |")
    assert text.endswith(f"{compat.END}\n\nMore.\n")
    assert "| 3.9.1 | 2.11.0 |" in text
    assert "old" not in text
    compat.into(page, compat.table(ROWS))
    assert page.read_text() == text


def test_a_page_without_the_comments_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Nothing here\n")
    with pytest.raises(SystemExit, match=r"page\.md has no"):
        compat.into(page, "table")
    assert page.read_text() == "# Nothing here\n"


def test_versions_are_in_order_of_their_numbers() -> None:
    assert sorted([ROWS[1], ROWS[0]], key=compat._order) == ROWS


def test_the_last_line_tells_what_passed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("...\n===== 2 failed, 7 passed, 1 skipped in 12.34s (0:00:12) =====\n\n")
    assert compat._last(log) == "2 failed, 7 passed, 1 skipped"


def test_a_python_is_one_that_runs_and_is_of_that_version() -> None:
    major, minor, _ = platform.python_version_tuple()
    assert compat.interpreter("2.99") is None
    there = compat.interpreter(f"{major}.{minor}")
    assert there is None or there.exists()


def test_the_page_of_the_documentation_holds_the_committed_rows() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = compat.rows(ROOT / "benchmarks" / "compat" / "results.jsonl")
    assert rows
    assert compat.table(rows) in text
