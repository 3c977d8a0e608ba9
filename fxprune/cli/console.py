"""What the commands print with: results on stdout, as tables or as JSON; progress, notes and errors on stderr.

Exit codes: 0 it is done; 1 fxprune refused, and says why; 2 the command line or the file of `--config` is wrong.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rich
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxprune.errors import FxPruneError, printable
from fxprune.planning.plan import Plan

AS_JSON: contextvars.ContextVar[bool] = contextvars.ContextVar("as_json", default=False)
out = Console()
err = Console(stderr=True)


def safe(text: str) -> str:
    """Text that may come from a file, for printing: no markup, and nothing that steers the terminal."""
    return escape(printable(text))


def say(text: str) -> None:
    """Lines of the result, broken between words where they are too long."""
    for line in text.splitlines():
        parts = textwrap.wrap(line, out.width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for part in parts or [""]:
            out.print(safe(part), highlight=False, soft_wrap=True)


def say_where(text: str) -> None:
    """A line with a path, which stays whole so that it can be copied."""
    out.print(safe(text), highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line beside the result."""
    err.print(f"[yellow]{safe(text)}[/]", highlight=False, soft_wrap=True)


@contextmanager
def told() -> Iterator[dict[str, Any]]:
    """Within, what a command prints goes where it belongs; yields the dict that becomes its JSON.

    An error of ours is one paragraph, not a traceback.
    """
    answer: dict[str, Any] = {}
    failed: FxPruneError | None = None
    with _messages_on_stderr(everything=AS_JSON.get()):
        try:
            yield answer
        except FxPruneError as e:
            err.print(f"[bold red]{type(e).__name__}:[/] [red]{safe(str(e))}[/]", soft_wrap=True)
            failed, answer = e, {"error": type(e).__name__, "message": str(e)}
    if AS_JSON.get():
        typer.echo(json.dumps(_plain(answer), indent=1))
    if failed is not None:
        raise typer.Exit(1) from failed


@contextmanager
def _messages_on_stderr(everything: bool) -> Iterator[None]:
    """Progress bars and warnings on stderr, and with `everything` whatever is printed, by libraries too."""
    bars = rich.get_console()
    before, shown = dict(vars(bars)), warnings.showwarning
    rich.reconfigure(stderr=True)
    warnings.showwarning = lambda message, *_, **__: note(f"note: {message}")
    try:
        with contextlib.redirect_stdout(sys.stderr) if everything else contextlib.nullcontext():
            yield
    finally:
        warnings.showwarning = shown
        vars(bars).clear()
        vars(bars).update(before)


def _plain(value: Any) -> Any:
    """JSON has no infinite numbers and no NaN: null stands for them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def print_table(title: str, columns: Mapping[str, Any], rows: Iterable[Sequence[str]], left_out: int = 0) -> None:
    say_bold(title)
    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in columns.items():
        table.add_column(name, justify=justify, overflow="fold", min_width=max(map(len, name.split()), default=0))
    for row in rows:
        table.add_row(*map(safe, row))
    out.print(table)
    if left_out:
        out.print(f"... and {left_out} more; --all shows them")


def say_bold(text: str) -> None:
    """A title."""
    out.print(f"[bold]{safe(text)}[/]", highlight=False)


def print_plan(plan: Plan) -> None:
    """What goes, measure by measure."""
    title = f"{plan.model}: {plan.achieved:.1%} of {plan.of} go (asked {plan.ratio:.1%}, by {plan.criterion})"
    rows = [(k, f"{a:,.0f}", f"{b:,.0f}", f"{b / a - 1 if a else 0:+.1%}") for k, (a, b) in plan.costs.items()]
    print_table(title, {"": "left", "dense": "right", "pruned": "right", "change": "right"}, rows)
    if plan.config:
        entries = ", ".join(f"{entry}={new:g} (was {old:g})" for entry, (old, new) in plan.config.items())
        say(f"config: {entries}")
    if plan.blocks:
        say(f"blocks: {', '.join(plan.blocks)}")
    if plan.regrouped:
        out.print(safe(f"regrouped norms: {', '.join(plan.regrouped)}"), highlight=False)


def plan_data(plan: Plan) -> dict[str, Any]:
    """The same as data."""
    return {
        "model": plan.model,
        "criterion": plan.criterion,
        "of": plan.of,
        "asked": plan.ratio,
        "achieved": plan.achieved,
        "costs": {k: {"dense": a, "pruned": b} for k, (a, b) in plan.costs.items()},
        "config": {k: {"dense": a, "pruned": b} for k, (a, b) in plan.config.items()},
        "blocks": list(plan.blocks),
        "regrouped": list(plan.regrouped),
    }
