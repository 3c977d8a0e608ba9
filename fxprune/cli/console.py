"""What the commands print with: the two streams, tables, a plan, and our errors as one paragraph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxprune.errors import FxPruneError, printable
from fxprune.planning.plan import Plan

out = Console()
err = Console(stderr=True)


def safe(text: str) -> str:
    """Text that may come from a file, for printing: no markup, and nothing that steers the terminal."""
    return escape(printable(text))


@contextmanager
def told() -> Iterator[None]:
    """An error of ours as one paragraph, not as a traceback."""
    try:
        yield
    except FxPruneError as e:
        err.print(f"[bold red]{type(e).__name__}:[/] [red]{safe(str(e))}[/]", soft_wrap=True)
        raise typer.Exit(1) from e


def print_table(title: str, columns: Mapping[str, Any], rows: Iterable[Sequence[str]], left_out: int = 0) -> None:
    out.print(f"[bold]{safe(title)}[/]", highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in columns.items():
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(safe, row))
    out.print(table)
    if left_out:
        out.print(f"... and {left_out} more; --all shows them")


def print_plan(plan: Plan) -> None:
    """What goes, measure by measure."""
    title = f"{plan.model}: {plan.achieved:.1%} of {plan.of} go (asked {plan.ratio:.1%}, by {plan.criterion})"
    rows = [(k, f"{a:,.0f}", f"{b:,.0f}", f"{b / a - 1 if a else 0:+.1%}") for k, (a, b) in plan.costs.items()]
    print_table(title, {"": "left", "dense": "right", "pruned": "right", "change": "right"}, rows)
    if plan.config:
        entries = ", ".join(f"{entry}={new:g} (was {old:g})" for entry, (old, new) in plan.config.items())
        out.print(safe(f"config: {entries}"), highlight=False, soft_wrap=True)
    if plan.blocks:
        out.print(safe(f"blocks: {', '.join(plan.blocks)}"), highlight=False, soft_wrap=True)
    if plan.regrouped:
        out.print(safe(f"regrouped norms: {', '.join(plan.regrouped)}"), highlight=False)
