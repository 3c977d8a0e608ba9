"""Pictures and tables in files: an empty matplotlib figure, and errors that say what to do where the disk refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fxprune.errors import InputsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_of(width: float, height: float) -> Figure:
    """A figure of so many inches, laid out within its edges, tied to no window.

    Raises:
        InputsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as e:
        raise InputsError('a picture needs matplotlib: pip install "fxprune[plots]"') from e
    return Figure(figsize=(width, height), layout="constrained")


def drawn(figure: Figure, path: str | os.PathLike[str], dpi: int) -> None:
    """Write a figure into a file, whose name tells the format.

    Raises:
        InputsError: matplotlib cannot write such a file, or the disk refuses.
    """
    with writing(path):
        try:
            figure.savefig(path, dpi=dpi)
        except ValueError as e:  # of a format that it does not know
            raise InputsError(f"{path} cannot be drawn: {e}; name a .png, .svg or .pdf file") from e


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is written within goes to a file of the caller's.

    Raises:
        InputsError: the disk refuses.
    """
    try:
        yield
    except OSError as e:
        raise InputsError(f"{path} cannot be written: {type(e).__name__}: {e}; name a file in a folder of yours") from e
