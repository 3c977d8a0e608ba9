"""What the demo hands back: one table, for the terminal, as Markdown and as JSON, and one picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.table import Table
from torch import Tensor

from fxprune.demo import digits
from fxprune.demo.asked import HEAD, Asked
from fxprune.demo.measure import Measured, ssim

GRID = 8  # digits in a row of the picture, and rows


@dataclass(frozen=True)
class Column:
    """One model in the table.

    Attributes:
        name: what it is.
        parameters, macs, loss: see `Measured`.
        latency: seconds of one forward.
        ssim: of its samples with the dense model's, from the same noise.
        confident: share of its samples that the classifier names with a probability of 0.9 or more.
        classes: how many of the ten digits occur among these.
    """

    name: str
    parameters: int
    macs: int
    latency: float
    loss: float
    ssim: float
    confident: float
    classes: int


@dataclass(frozen=True)
class Results:
    """The table: the first column is the dense model, with which the others are compared.

    Beside it a row for each way to say how much goes.
    """

    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    asked: tuple[Asked, ...] = ()

    def rows(self) -> list[list[str]]:
        """The cells, a row a figure."""
        return [[label, *(cell(c, self.columns[0]) for c in self.columns)] for label, cell in _ROWS]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title="The digits DDPM", caption="\n".join(self.notes), caption_justify="left")
        table.add_column("")
        for column in self.columns:
            table.add_column(column.name, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def wishes(self) -> Table:
        """What was asked and what it costs, for the terminal."""
        table = Table(title="Smaller or faster, before any training")
        for k, name in enumerate(HEAD):
            table.add_column(name, justify="right" if k else "left", overflow="fold")
        for row in self.asked:
            table.add_row(row.cells[0].strip("`"), *row.cells[1:])
        return table

    def markdown(self) -> str:
        """As Markdown."""
        tables = [_markdown(["", *(c.name for c in self.columns)], self.rows())]
        tables += [_markdown(HEAD, [row.cells for row in self.asked])] * bool(self.asked)
        return "\n\n".join([*tables, " ".join(self.notes)]) + "\n"

    def to_json(self, **more: Any) -> str:
        """The figures themselves, and whatever else is given."""
        held = {"columns": [vars(c) for c in self.columns], "asked": [vars(a) for a in self.asked], **more}
        return json.dumps(held, indent=1, allow_nan=False) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def column(name: str, measured: Measured, dense: Measured, latency: float) -> Column:
    """The column of one model."""
    confident, classes = digits.confidence_share(measured.images)
    similarity = ssim(measured.images, dense.images)
    return Column(name, measured.parameters, measured.macs, latency, measured.loss, similarity, confident, classes)


def _less(value: int, dense: int) -> str:
    """A count, and by which share it is less than the dense model's."""
    return f"{value:,}" if value == dense else f"{value:,} (−{1 - value / dense:.1%})"


def _faster(value: float, dense: float) -> str:
    """A time, and how many times as fast that is as the dense model."""
    text = f"{value * 1e3:.1f} ms"
    return text if value == dense else f"{text} ({dense / value:.2f}×)"


_ROWS: Sequence[tuple[str, Callable[[Column, Column], str]]] = (
    ("Parameters", lambda c, dense: _less(c.parameters, dense.parameters)),
    ("MACs per image", lambda c, dense: _less(c.macs, dense.macs)),
    ("Latency", lambda c, dense: _faster(c.latency, dense.latency)),
    ("Held-out loss", lambda c, dense: f"{c.loss:.4f}"),
    ("SSIM to dense", lambda c, dense: f"{c.ssim:.3f}"),
    ("Confident samples", lambda c, dense: f"{c.confident:.1%}"),
    ("Digits among these", lambda c, dense: f"{c.classes} of {digits.CLASSES}"),
)


def draw(columns: Sequence[Column], images: Sequence[Tensor], path: Path) -> None:
    """Write a PNG of the first samples of each model, drawn from the same noise, side by side."""
    figure = Figure(figsize=(4 * len(columns), 4.6), layout=ConstrainedLayoutEngine(h_pad=0.1, wspace=0.06))
    for axes, column, drawn in zip(figure.subplots(1, len(columns)), columns, images, strict=True):
        axes.imshow(_grid(drawn).numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(f"{column.name}\n{column.parameters:,} parameters")
        axes.axis("off")
    figure.savefig(path, dpi=120)


def _grid(images: Tensor) -> Tensor:
    """Up to 64 digits as one image, a blank pixel between neighbours."""
    shown = images[: GRID * GRID]
    blank = torch.full((GRID * GRID - len(shown), *shown.shape[1:]), -1.0)
    framed = torch.nn.functional.pad(torch.cat([shown, blank]), (1, 1, 1, 1), value=-1)
    side = framed.shape[-1]
    return framed.reshape(GRID, GRID, side, side).transpose(1, 2).reshape(GRID * side, GRID * side)
