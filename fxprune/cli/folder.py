"""The DIR of a command: the model or pipeline in it, on the device that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.errors import InputsError, SaveError
from fxprune.saving import stock
from fxprune.saving.header import HEADER
from fxprune.saving.save import load

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A diffusers pipeline or model, or a folder that fxprune wrote.")
]


def open_folder(directory: Path) -> Any:
    """The model or pipeline in a folder."""
    if (directory / HEADER).is_file() or not directory.is_dir():
        return load(directory)
    if stock.is_stock_folder(directory):
        return stock.read_folder(directory)
    raise SaveError(
        f"{directory} is neither a diffusers pipeline ({stock.INDEX}), nor a diffusers model ({stock.CONFIG}), nor a "
        f"folder that fxprune wrote ({HEADER})"
    )


def on_device(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as e:  # torch's, for a device that is not there
        raise InputsError(f"--device {device} cannot be used: {e}") from e
