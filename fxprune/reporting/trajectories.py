"""A run as a picture: masks, cost, energy and loss, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fxprune.errors import InputsError
from fxprune.reporting.figures import drawn, figure_of
from fxprune.reporting.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 48  # groups; with more of them the rows carry no names


def draw(history: History, path: str | Path) -> Path:
    """Draw a history into a file whose suffix tells the format (PNG, SVG, PDF).

    Raises:
        InputsError: there is no step yet, matplotlib is not installed, or no such file can be written.
    """
    drawn(picture_of(history), path, 120)
    return Path(path)


def picture_of(history: History) -> Figure:
    """The same, not written yet.

    Raises:
        InputsError: there is no step yet, or matplotlib is not installed.
    """
    if not len(history):
        raise InputsError("this run has taken no step yet, so there is nothing to draw")
    panels = [p for p in (_masks, _budget, _energy, _loss) if _has(history, p)]
    figure = figure_of(9, sum(_height(history, p) for p in panels))
    ratios = [_height(history, p) for p in panels]
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        panel(history, axis, figure)
        axis.set_xlim(1, max(2, len(history)))
    axes[-1].set_xlabel("step")
    return figure


def _has(history: History, panel: Any) -> bool:
    needed = {_budget: "remaining", _energy: "energy", _loss: "loss"}.get(panel)
    return len(history.means) > 0 if needed is None else bool(np.isfinite(history.column(needed)).any())


def _height(history: History, panel: Any) -> float:
    """In inches."""
    return float(np.clip(0.16 * len(history.groups), 2, 8)) if panel is _masks else 2.0


def _masks(history: History, axis: Any, figure: Any) -> None:
    """One row a group, from ones (dark) to what is left of it."""
    means = history.means
    names = history.groups
    last = 1 + len(means) * history.every
    image = axis.imshow(
        means.T, aspect="auto", vmin=0, vmax=1, cmap="viridis", extent=(1, last, len(names) - 0.5, -0.5)
    )
    axis.set_yticks(range(len(names)) if len(names) <= NAMED else [], names if len(names) <= NAMED else [], fontsize=6)
    axis.set_ylabel("groups")
    figure.colorbar(image, ax=axis, label="mean mask", fraction=0.03)


def _budget(history: History, axis: Any, figure: Any) -> None:
    steps = np.arange(1, len(history) + 1)
    for name in ("remaining", "allowed", "undecided"):
        column = history.column(name)
        if np.isfinite(column).any():
            axis.plot(steps, column, label=name, linestyle="--" if name == "allowed" else "-")
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("share of the cost")
    axis.legend(fontsize=7)


def _energy(history: History, axis: Any, figure: Any) -> None:
    axis.plot(np.arange(1, len(history) + 1), history.column("energy"), color="tab:green")
    axis.set_ylabel("energy")


def _loss(history: History, axis: Any, figure: Any) -> None:
    """Every step's loss, faint, and its running mean."""
    steps, loss = np.arange(1, len(history) + 1), history.column("loss")
    axis.plot(steps, loss, color="tab:gray", alpha=0.3, linewidth=0.7)
    seen = np.isfinite(loss)
    width = max(1, int(seen.sum()) // 50)
    smooth = np.convolve(loss[seen], np.ones(width) / width, "valid")
    axis.plot(steps[seen][width - 1 :], smooth, color="tab:blue")
    axis.set_ylabel("loss")
