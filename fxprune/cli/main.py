"""The app: its commands in the order of the help, and `--version`."""

from __future__ import annotations

from typing import Annotated

import typer

from fxprune import __version__
from fxprune.cli.compare import compare
from fxprune.cli.console import out
from fxprune.cli.demo import demo
from fxprune.cli.inspect import inspect
from fxprune.cli.list import list_
from fxprune.cli.prune import prune
from fxprune.cli.report import report
from fxprune.cli.sensitivity import sensitivity

app = typer.Typer(
    name="fxprune",
    help="Make a trained network smaller: whole channels, heads and blocks go, a dense model of the same class stays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"fxprune {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Only `--version`; the rest are commands."""


app.command()(prune)
app.command()(inspect)
app.command()(sensitivity)
app.command()(compare)
app.command()(report)
app.command("list")(list_)
app.command()(demo)
