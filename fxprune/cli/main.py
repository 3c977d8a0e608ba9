"""The app: its commands in the order of the help, and `--version`.

A command's module is imported when it is run, so that `fxprune --help` and `--version` need no torch.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from fxprune import __version__
from fxprune.cli.commands import COMMANDS


class Commands(typer.core.TyperGroup):
    """Commands that are imported once they are run: until then each is its name and the first line of its help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As in click, with the real command."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and real(command.name), rest


def real(name: str | None) -> Any:
    """A command whole."""
    module = importlib.import_module(f"fxprune.cli.{name}")
    alone = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    common = importlib.import_module("fxprune.cli.config").with_common
    alone.command(name)(common(getattr(module, "list_" if name == "list" else str(name))))
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=Commands,
    name="fxprune",
    help="Make a trained network smaller: whole channels, heads and blocks go, a dense model of the same class stays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fxprune {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Only `--version`; the rest are commands."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)
