"""Which tests run which lines, and how long each of them takes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest


@dataclass(frozen=True)
class Covering:
    """What one run of the tests has shown.

    Attributes:
        seconds: of every test that passed, by its id.
        lines: path -> line -> tests that run it.
        modules: what they import from elsewhere, in that order.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[str, list[str]]]
    modules: list[str]

    def of(self, path: str, line: int) -> list[str]:
        """The tests of a line, the quickest first; of a line that runs at import, the tests of its file."""
        own = self.lines.get(path, {})
        found = {t for t in own.get(str(line), []) if t in self.seconds}
        if not found and str(line) in own:
            found = {t for tests in own.values() for t in tests if t in self.seconds}
        return sorted(found, key=self.seconds.__getitem__)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Covering:
        return cls(**json.loads(file.read_text()))


class _Watching:
    """A plugin of pytest's that names the test of each line."""

    def __init__(self, tool: coverage.Coverage) -> None:
        self.tool, self.seconds, self.failed = tool, {}, set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.tool.switch_context(item.nodeid)
        begun = time.perf_counter()
        yield
        self.seconds[item.nodeid] = time.perf_counter() - begun
        self.tool.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)


def measure(root: Path, tests: list[str]) -> Covering:
    """Run tests in this process, which has imported nothing of the checkout yet.

    Args:
        root: of the checkout, also the working folder.
        tests: files and folders of tests.
    """
    tool = coverage.Coverage(config_file=False, source=[str(root)], data_file=None)
    watching = _Watching(tool)
    tool.start()
    os.chdir(root)
    sys.path.insert(0, str(root))
    pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *tests], plugins=[watching])
    tool.stop()
    data = tool.get_data()
    lines: dict[str, Any] = {}
    for file in data.measured_files():
        path = Path(file).resolve().relative_to(root)
        if path.parts[0] != "tests":
            lines[str(path)] = data.contexts_by_lineno(file)
    seconds = {t: s for t, s in watching.seconds.items() if t not in watching.failed}
    own = (str(root), "None")
    outside = [n for n, m in sys.modules.items() if not str(getattr(m, "__file__", None)).startswith(own)]
    return Covering(seconds, lines, outside)
