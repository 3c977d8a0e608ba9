"""Pictures and tables in files: checked before the work that they will show, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.errors import InputsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


def readable(axes: Axes, shares: Sequence[float]) -> None:
    """Ticks that say what they stand for: the shares that were asked for in percent, values as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter

    if shares:
        axes.set_xticks(list(shares))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    if axes.get_yscale() != "log":
        return
    low, high = axes.get_ylim()
    if high / max(low, 1e-300) < 100:  # a decade or two: powers of ten alone would be one tick or none
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if high / low < 2:
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(10, 10)))
            return
    axes.yaxis.set_minor_formatter(NullFormatter())


def check_file(path: str | os.PathLike[str], what: str) -> Path:
    """A path where a file can be written.

    Args:
        path: of the file.
        what: the argument that names it, for messages.

    Raises:
        InputsError: it is a folder, or its folder is not there or cannot be written to.
    """
    file = Path(path)
    if file.is_dir():
        raise InputsError(f"{what}={str(path)!r} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise InputsError(f"{what}={str(path)!r}: there is no folder {file.parent}; make it first, or name another one")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputsError(f"{what}={str(path)!r} cannot be written to; name a file in another folder")
    return file


def check_picture(path: str | os.PathLike[str], what: str = "picture") -> Path:
    """A path where a picture can be drawn: see `check_file`, and matplotlib knows the format.

    Raises:
        InputsError: it does not, is not installed, or the file cannot be written.
    """
    file = check_file(path, what)
    known = figure_of(1, 1).canvas.get_supported_filetypes()
    if (suffix := file.suffix.lower().lstrip(".") or "png") not in known:
        raise InputsError(f"{what}={str(path)!r}: a picture cannot be .{suffix}; use .png, .svg or .pdf")
    return file


def drawn(figure: Figure, path: str | os.PathLike[str], dpi: int) -> None:
    """Write a figure into a file, whose name tells the format.

    Raises:
        InputsError: matplotlib cannot write such a file, or the disk refuses.
    """
    with writing(path):
        try:
            figure.savefig(path, dpi=dpi, format=Path(path).suffix.lower().lstrip(".") or "png")
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
