"""`fxprune report`: what was done to a pruned model, as a page or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.console import plan_data, say_where, told
from fxprune.errors import PlanError
from fxprune.reporting.figures import check_file, writing
from fxprune.reporting.page import page
from fxprune.reporting.report import Report
from fxprune.saving.header import Saved
from fxprune.saving.header_reading import read


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that fxprune wrote.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Write a page that tells what was pruned in DIR, and why; no model is built for it.

    Example: fxprune report small-ddpm -o report.html
    """
    with told() as answer:
        file = check_file(output, "--out")
        parts = dict(_parts(directory))
        text = page(parts)
        with writing(file):
            file.write_text(text, encoding="utf-8")
        answer |= {"out": str(file), "models": {name: plan_data(part.total) for name, part in parts.items()}}
        say_where(f"report in {file}")


def _parts(directory: Path) -> Iterator[tuple[str, Report]]:
    """The pruned models in a folder, by what they are called."""
    saved = read(directory)
    parts = {"": saved} if isinstance(saved, Saved) else {n: read(directory / n) for n in saved.components}
    for name, part in parts.items():
        if not isinstance(part, Saved) or part.report is None:
            raise PlanError(f"{directory / name} holds a {part.name} that was not pruned; run fxprune prune first")
        yield name or part.name, part.report
