"""What commands do with models and folders: open, put on a device, read data for, save so that nothing is lost."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import typer

from fxprune.adapter import find_adapter
from fxprune.cli.console import note
from fxprune.errors import InputsError, SaveError
from fxprune.saving.folder import replacing
from fxprune.saving.save import save
from fxprune.scoring.context import Loss
from fxprune.sources.data import draws, open_data
from fxprune.sources.models import open_model

WITHOUT_DATA = "magnitude"  # the criterion where the default one has no data to look at


class Given(NamedTuple):
    """Batches and a loss, where there are some, and the criterion to rank by."""

    batches: Iterable[Any] | None
    loss: Loss | None
    criterion: str

    def beside(self, model: Any) -> dict[str, Any]:
        """`data=` and `loss=`; a loss that the model's family knows is left to it, which then sees `timesteps=`."""
        own = find_adapter(model).loss_of(model) is not None
        return {"data": self.batches, **({} if own or self.loss is None else {"loss": self.loss})}


def opened(model: str, weights: Path | None, arguments: Iterable[str] | None, device: str) -> Any:
    """The model or pipeline that a command works on."""
    return on_device(open_model(model, weights=weights, arguments=_arguments(arguments) or None), device)


def _arguments(given: Iterable[str] | None) -> dict[str, Any]:
    """NAME=VALUE items; values as Python writes numbers, lists, True and None, else text."""
    out: dict[str, Any] = {}
    for item in given or ():
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise InputsError(f"--argument {item} is not of the form NAME=VALUE, such as in_chans=1")
        try:
            out[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[name] = text
    return out


def data_for(
    ctx: typer.Context,
    model: Any,
    path: Path | None,
    criterion: str,
    *,
    batch: int = 16,
    shuffle: bool = False,
    seed: int = 0,
    tokenizer: Path | None = None,
) -> Given:
    """What a criterion looks at; where there is nothing and none was asked for, one that needs nothing."""
    if path is not None:
        found = open_data(model, path, batch=batch, shuffle=shuffle, seed=seed, tokenizer=tokenizer)
        return Given(found.batches, found.loss, criterion)
    asked = (source := ctx.get_parameter_source("criterion")) is not None and source.name != "DEFAULT"
    if asked or draws(model):
        return Given(None, None, criterion)
    note(
        f"note: a {type(model).__name__} draws no data itself, so channels are ranked by {WITHOUT_DATA}; --data "
        f"lets {criterion} look at the model at work"
    )
    return Given(None, None, WITHOUT_DATA)


def require_data(model: Any, path: Path | None, what: str) -> None:
    """Check that a loss can be measured.

    Raises:
        InputsError: there are no data to measure it on.
    """
    if path is None and not draws(model):
        raise InputsError(
            f"{what} measures a loss, and a {type(model).__name__} draws no data itself: pass --data, a folder of "
            "images in sub-folders by class, or text for a language model"
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
    if not hasattr(model, "save_pretrained"):
        note(f"note: {type(model).__name__} has no save_pretrained, so fxprune writes the folder")
        save(model, output)
        return
    with replacing(output) as new:
        model.save_pretrained(new)


def on_device(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as e:  # torch's, for a device that is not there
        raise InputsError(f"--device {device} cannot be used: {e}") from e
