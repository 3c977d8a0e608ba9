"""The DIR of a command: the model or pipeline in it, on the device that was asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.errors import InputsError, SaveError
from fxprune.saving import stock
from fxprune.saving.folder import replacing
from fxprune.saving.header import HEADER
from fxprune.saving.save import load, save

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


def writable(directory: Path) -> Path:
    """The same, once it is known that a folder can be made there.

    Raises:
        SaveError: it cannot.
    """
    there = next(p for p in (directory, *directory.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there if there != directory else there.parent):
            return directory
    except OSError as e:
        raise SaveError(f"{directory} cannot be written: {type(e).__name__}: {e}; name another folder") from e


def saved_somewhere(model: Any, output: Path, stock: bool = False) -> None:
    """Save in a folder, or where that fails after all in one of the system's, so that no work is lost.

    Args:
        stock: by the library's own `save_pretrained`.

    Raises:
        SaveError: says where the model lies.
    """
    write = _save_stock if stock else save
    try:
        write(model, output)
    except SaveError as e:
        beside = Path(tempfile.mkdtemp(prefix="fxprune-")) / output.name
        try:
            write(model, beside)
        except SaveError:
            raise e from None
        raise SaveError(f"{e}; the pruned model was saved in {beside} instead") from e


def _save_stock(model: Any, output: Path) -> None:
    with replacing(output) as new:
        model.save_pretrained(new)


def on_device(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as e:  # torch's, for a device that is not there
        raise InputsError(f"--device {device} cannot be used: {e}") from e
