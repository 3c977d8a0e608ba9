"""A run shown as one line while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

from fxprune.reporting.history import Told

Tell: TypeAlias = Callable[[Told, float], None]


@contextlib.contextmanager
def bar(shown: bool, total: int, taken: int) -> Iterator[Tell]:
    """Within, a function that shows a step and the loss's running mean; it does nothing if not `shown`."""
    if not shown:
        yield lambda told, loss: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=total, completed=taken)
        yield lambda told, loss: progress.update(task, completed=told.step, description=line(told, loss))


def line(told: Told, loss: float) -> str:
    """The figures that there are.

    >>> line(Told(3, 0.5, {"remaining": 0.75, "undecided": 0.1, "price": 0.25}), 0.5)
    'loss 0.5, left 75.0%, undecided 10%, price 0.25'
    """
    shown = {"remaining": "left {:.1%}", "undecided": "undecided {:.0%}", "price": "price {:.2f}"}
    parts = [text.format(told.figures[name]) for name, text in shown.items() if name in told.figures]
    return ", ".join([f"loss {loss:.4g}", *parts])
