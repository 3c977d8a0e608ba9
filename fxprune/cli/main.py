"""The app: its commands in the order of the help, and `--version`.

A command's module is imported when it is run, so that `fxprune --help` and `--version` need no torch.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from fxprune import __version__

# Name -> the first line of the command's own help; its function and module are called alike (`list_` in `list`).
COMMANDS = {
    "prune": "Prune MODEL, or the backbone of a pipeline, and save the result in the folder OUT.",
    "inspect": "Show what can be pruned in MODEL, what cannot and why, and how it was pruned if it was.",
    "plan": "Write down what `prune` would take of MODEL, as a plan to look at, to edit and to apply.",
    "apply": "Carry out a plan on MODEL: the one it was made for, or other weights of it; save the result in OUT.",
    "verify": "Prove that MODEL is right: with --dense, that it computes what the dense model with masks computes.",
    "report": "Write a page that tells what was pruned in DIR, and why; no model is built for it.",
    "sample": "Draw images with the pipeline in MODEL into one picture, or let a language model go on from a prompt.",
    "export": "Write MODEL, or the backbone of a pipeline, as a file for torch.export or ONNX, and compare the two.",
    "sensitivity": "Measure how much the loss of MODEL rises when one part after the other loses channels.",
    "compare": "Prune MODEL by several criteria; show its loss before any training, and what scoring took.",
    "list": "List criteria, schedulers and adapters: the built-in ones and those of other installed packages.",
    "demo": "Prune a small diffusion model of handwritten digits that ships with the package; takes a few minutes.",
}


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
