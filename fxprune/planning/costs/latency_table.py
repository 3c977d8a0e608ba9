"""Measured times on disk: one JSON file a device, number type and version of torch, in the user's cache folder.

The folder is FXPRUNE_CACHE, or else fxprune/ in XDG_CACHE_HOME (~/.cache).  Delete it to measure anew.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

FORMAT = 1


def cache_folder() -> Path:
    """Where measured times are kept."""
    if own := os.environ.get("FXPRUNE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxprune"


def device_name(device: torch.device) -> str:
    """What the device is called; for a CPU with its instruction set and the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {_model_name() or platform.machine()} {instructions} {torch.get_num_threads()} threads"


def _model_name() -> str:
    """The CPU's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


@dataclass
class Table:
    """Lists of microseconds by key, kept in a file.  `Table.of(device, dtype)` opens that of a device."""

    path: Path
    rows: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Table:
        """The table of a device and number type; a damaged file is put aside with a warning."""
        words = f"{device_name(device)} {str(dtype).removeprefix('torch.')} torch {torch.__version__}"
        table = cls(cache_folder() / f"latency-{re.sub(r'[^0-9A-Za-z.]+', '-', words)}.json")
        table.rows = table._read()
        return table

    def _read(self) -> dict[str, list[float]]:
        try:
            data = json.loads(self.path.read_text())
            if data["format"] != FORMAT:
                return {}
            return {str(k): _times(v) for k, v in data["rows"].items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            warnings.warn(f"{self.path} is damaged ({type(e).__name__}: {e}); it is measured anew", stacklevel=4)
            return {}

    def get(self, key: str, measure: Callable[[], Sequence[float]]) -> list[float]:
        """The row of that key, measured and written to disk where it is missing."""
        if key not in self.rows:
            self.rows[key] = [round(float(x), 3) for x in measure()]
            self._write()
        return self.rows[key]

    def _write(self) -> None:
        """Whole or not at all, with what other processes wrote in the meantime; a disk that refuses costs the cache."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.rows = {**self._read(), **self.rows}
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, suffix=".tmp") as file:
                json.dump({"format": FORMAT, "rows": self.rows}, file)
            os.replace(file.name, self.path)
        except OSError as e:
            warnings.warn(f"latencies cannot be kept in {self.path}: {type(e).__name__}: {e}", stacklevel=4)


def _times(row: object) -> list[float]:
    if not isinstance(row, list) or not all(type(x) in (int, float) and 0 <= x < math.inf for x in row):
        raise ValueError("a row is no list of times")
    return [float(x) for x in row]
