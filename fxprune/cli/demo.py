"""`fxprune demo`: the diffusion model of handwritten digits that ships with the package, pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.console import told
from fxprune.errors import SaveError


def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Folder for pictures, table and model.")
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Share of the parameters to remove.")] = None,
    criterion: Annotated[str | None, typer.Option(help="How channels are ranked; see `fxprune list`.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of fine-tuning.")] = None,
    seed: Annotated[int | None, typer.Option(help="For everything drawn at random.")] = None,
) -> None:
    """Prune a small diffusion model of handwritten digits that ships with the package; takes a few minutes."""
    given = {"output": output, "ratio": ratio, "criterion": criterion, "steps": steps, "seed": seed}
    with told():
        try:
            from fxprune.demo.run import main as run
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("fxprune"):
                raise
            raise SaveError(f'the demo needs {e.name}: pip install "fxprune[demo]"') from e
        run(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
