"""`fxprune export`: a model as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.adapter import find_adapter
from fxprune.cli import options as o
from fxprune.cli.console import say, say_where, told
from fxprune.cli.folder import opened
from fxprune.reporting.figures import check_file
from fxprune.saving.exporting import export as export_


def export(
    model: o.Model,
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="model.pt2 (torch.export) or model.onnx.")
    ],
    weights: o.Weights = None,
    argument: o.Argument = None,
    batch: Annotated[int, typer.Option(help="Samples that the file takes at a time.")] = 1,
) -> None:
    """Write MODEL, or the backbone of a pipeline, as a file for torch.export or ONNX, and compare the two.

    Example: fxprune export small -o small.onnx
    """
    with told() as answer:
        file = check_file(output, "--out")
        given = opened(model, weights, argument, "cpu")
        made = export_(find_adapter(given).unwrap(given)[0], file, batch=batch)
        answer |= {"out": str(file), "format": made.format, "error": made.error, "inputs": made.inputs}
        for name, shape in made.inputs.items():
            say(f"input {name}: {shape}")
        say("not compared: onnxruntime is not installed" if made.error is None else
            f"it computes what the model computes: relative error {made.error:.1e}")  # fmt: skip
        say_where(f"{made.format} in {file}")
