"""`fxprune demo`: the diffusion model of handwritten digits that ships with the package, pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.console import told
from fxprune.errors import SaveError


def demo(
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", "--output", metavar="OUT", help="Folder for pictures, table and model."),
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Share of the parameters to remove.")] = None,
    criterion: Annotated[str | None, typer.Option(help="How channels are ranked; see `fxprune list`.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of fine-tuning.")] = None,
    seed: Annotated[int | None, typer.Option(help="For everything drawn at random.")] = None,
) -> None:
    """Prune a small diffusion model of handwritten digits that ships with the package; takes a few minutes."""
    given = {"output": output, "ratio": ratio, "criterion": criterion, "steps": steps, "seed": seed}
    with told() as answer:
        try:
            from fxprune.demo.run import main as run
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("fxprune"):
                raise
            raise SaveError(f'the demo needs {e.name}: pip install "fxprune[demo]"') from e
        run(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        table = (output or Path("fxprune-demo")) / "table.json"
        if table.is_file():
            answer |= json.loads(table.read_text(encoding="utf-8"))
