"""What the tables of studies write themselves as."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fxprune.errors import InputsError
from fxprune.reporting.figures import writing


def written(text: str, path: str | Path | None) -> str:
    """The text, in a file too where there is one.

    Raises:
        InputsError: it cannot be written.
    """
    if path is not None:
        with writing(path):
            Path(path).write_text(text, encoding="utf-8")
    return text


def frame(records: Iterable[dict[str, Any]], who: str) -> Any:
    """Rows as a `pandas.DataFrame`.

    Raises:
        InputsError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as e:
        raise InputsError(f"{who}.to_pandas needs pandas: pip install pandas; to_csv needs nothing") from e
    return pandas.DataFrame(list(records))
