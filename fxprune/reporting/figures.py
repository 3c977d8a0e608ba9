"""An empty matplotlib figure, or an error that says what to install."""

from __future__ import annotations

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
