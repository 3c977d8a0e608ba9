"""The file in which `fxprune.sensitivity` keeps what it has measured while it runs: one line a part and share.

# Net {"model": "Net 3f2a", "criterion": "magnitude", ...}
group,share,loss
,0.0,0.412                     the dense model
enter.weight:0,0.25,0.419
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fxprune.errors import InputsError, SaveError
from fxprune.scoring.identity import differences
from fxprune.studies.shared import alone

CSV = "sensitivity.csv"
DENSE = ""  # the group of what was measured of the dense model
Point = tuple[str, float]


class Kept:
    """What has been measured, by group and share.

    Args:
        what: all that it depends on, by name; see `fxprune.scoring.identity`.
        metric: its name.
        folder: for the file; None: nothing is written.

    Raises:
        InputsError: the folder holds another measurement.
        SaveError: it cannot be written to.
    """

    def __init__(self, what: Mapping[str, str], metric: str, folder: Path | None) -> None:
        self.what, self.metric, self.folder = dict(what), metric, folder
        self.values: dict[Point, float] = {}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with alone(folder):
                self._begin(folder / CSV)
        except OSError as e:
            raise SaveError(f"out={str(folder)!r} cannot be written to: {type(e).__name__}: {e}; name another") from e

    def look(self) -> None:
        """Take over what other processes have measured meanwhile."""
        if self.folder is not None:
            with alone(self.folder):
                self.values |= self._read(self.folder / CSV)[1]

    def holds(self, group: str, shares: Sequence[float]) -> bool:
        """Whether all of a part's shares have been measured."""
        return all((group, share) in self.values for share in shares)

    def add(self, group: str, shares: Sequence[float], values: Sequence[float]) -> None:
        """Keep what was measured of a part, in the file too."""
        found = dict(zip(((group, share) for share in shares), values, strict=True))
        self.values |= found
        if self.folder is not None:
            with alone(self.folder), (self.folder / CSV).open("a", encoding="utf-8") as file:
                file.write(_lines(found))

    def _begin(self, file: Path) -> None:
        """Take over whole lines of an earlier run; what a kill has cut off is dropped."""
        was, self.values = self._read(file)
        if was is not None and (changed := differences(was, self.what)):
            raise InputsError(f"{file} holds another measurement: {changed}; name another folder, or remove it")
        title = f"# {self.what['model'].split()[0]} {json.dumps(self.what)}\n"
        fresh = file.with_suffix(".new")
        fresh.write_text(f"{title}group,share,{self.metric}\n{_lines(self.values)}", encoding="utf-8")
        os.replace(fresh, file)

    def _read(self, file: Path) -> tuple[dict[str, str] | None, dict[Point, float]]:
        if not file.exists():
            return None, {}
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            was = {str(k): str(v) for k, v in json.loads(lines[0][lines[0].index("{") :]).items()}
            whole = csv.reader(line for line in lines[2:] if line.endswith("\n"))
            return was, {(group, float(share)): float(value) for group, share, value in whole}
        except (ValueError, IndexError, AttributeError) as e:
            raise InputsError(f"{file} is damaged, or something else ({e}); remove it, or name another folder") from e


def _lines(values: Mapping[Point, float]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows((group, repr(share), repr(value)) for (group, share), value in values.items())
    return text.getvalue()
