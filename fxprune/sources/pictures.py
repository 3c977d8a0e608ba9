"""Folders of images, as data: what their sub-folders and the texts beside them say.

    folder/cat/1.png, folder/dog/2.png      sub-folders are classes
    folder/metadata.jsonl (or .csv)         a row an image: {"file_name": "1.png", "text": "a cat"}
    folder/1.png, folder/1.txt              a caption beside each image

as the `imagefolder` of the `datasets` library has it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from fxprune.adapter import Files
from fxprune.errors import InputsError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MODES = {1: "L", 3: "RGB"}
TABLES = ("metadata.jsonl", "metadata.csv")
TEXTS = ("text", "caption", "prompt")
HALF = (0.5, 0.5)  # mean and deviation that put images into [-1, 1]


@dataclass(frozen=True)
class Pictures(Dataset[Any]):
    """Images of one shape: the largest centred part of it, resized, less a mean and over a deviation.

    Attributes:
        files: where they are.
        shape: (channels, height, width); 1 channel is grey, 3 are colours.
        beside: names -> what goes with each image: a label, a caption.  Without any an item is the image alone, else a
            dict with the image under `entry`.
        norm: mean and deviation of the channels, of pixels in [0, 1].
        entry: what a dict calls the image.

    Raises:
        InputsError: images do not have so many channels.
    """

    files: Sequence[Path]
    shape: tuple[int, int, int]
    beside: Mapping[str, Sequence[Any]]
    norm: tuple[Any, Any] = HALF
    entry: str = "images"

    def __post_init__(self) -> None:
        if self.shape[0] not in MODES:
            raise InputsError(f"the model takes {self.shape[0]} channels, which are not those of an image")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        """One image, of `shape`, and what goes with it."""
        image = self._image(self.files[index])
        return {self.entry: image, **{k: v[index] for k, v in self.beside.items()}} if self.beside else image

    def _image(self, file: Path) -> Tensor:
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        try:
            with Image.open(file) as image:
                fitted = ImageOps.fit(image.convert(MODES[channels]), (width, height), Image.Resampling.BICUBIC)
        except OSError as e:
            raise InputsError(f"{file} is no image that can be read: {e}; take it out of the folder") from e
        pixels = torch.from_numpy(np.array(fitted, np.float32)).reshape(height, width, channels).permute(2, 0, 1) / 255
        mean, deviation = (torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in self.norm)
        return (pixels - mean) / deviation


def images_in(folder: Path) -> list[Path]:
    """The images in a folder and its sub-folders, in the order of their names.

    Raises:
        InputsError: there is none.
    """
    if not folder.is_dir():
        raise InputsError(f"there is no folder {folder}; name one with images")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise InputsError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found


def loader(dataset: Pictures, files: Files) -> DataLoader[Any]:
    """Batches of them, none smaller than the others."""
    size = min(files.batch, len(dataset))
    if files.shuffle:
        return DataLoader(dataset, size, shuffle=True, drop_last=True)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(files.seed))
    return DataLoader(Subset(dataset, order.tolist()), size, drop_last=True)


def labels_of(folder: Path, files: Sequence[Path], classes: int, known: Mapping[str, int] | None = None) -> list[int]:
    """The class of each image, by the sub-folder it is in.

    Sub-folders are called by the model's own names of classes, or are numbers, or are as many as there are classes, in
    the order of their names (as torchvision and timm have it).

    Raises:
        InputsError: images stand in no sub-folder, or the folders are not those of the model's classes.
    """
    names = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in files]
    if "" in names:
        raise InputsError(
            f"{files[names.index('')]} stands in no sub-folder: put each image into a folder of its class, "
            f"such as {folder}/0, or use a criterion that needs no data, such as magnitude"
        )
    there = sorted(set(names))
    number = _numbers(there, classes, known or {})
    if number is None:
        shown = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
        raise InputsError(
            f"{folder} has {len(there)} sub-folders ({shown}), the model {classes} classes: call "
            f"the folders by the numbers of the classes, 0 to {classes - 1}"
        )
    return [number[name] for name in names]


def _numbers(there: Sequence[str], classes: int, known: Mapping[str, int]) -> dict[str, int] | None:
    if all(name in known for name in there):
        return {name: int(known[name]) for name in there}
    if all(name.isdecimal() and int(name) < classes for name in there):
        return {name: int(name) for name in there}
    return {name: i for i, name in enumerate(there)} if len(there) == classes else None


def captions_of(folder: Path, files: Sequence[Path]) -> list[str]:
    """The caption of each image, from a table or from the text beside it.

    Raises:
        InputsError: an image has none.
    """
    told = {path: text for table in TABLES for file in sorted(folder.rglob(table)) for path, text in _rows(file)}
    found = []
    for file in files:
        beside = file.with_suffix(".txt")
        text = told.get(file.resolve())
        if text is None and beside.is_file():
            text = beside.read_text(encoding="utf-8").strip()
        if text is None:
            raise InputsError(
                f"{file} has no caption: put one into {beside.name} beside it, or into {folder}/{TABLES[0]}, a line an "
                f'image: {{"file_name": "{file.name}", "text": "..."}}'
            )
        found.append(text)
    return found


def _rows(table: Path) -> list[tuple[Path, str]]:
    """File and caption of each row of a table."""
    try:
        text = table.read_text(encoding="utf-8")
        if table.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise InputsError(f"{table} cannot be read: {type(e).__name__}: {e}") from e
    out = []
    for number, row in enumerate(rows, 1):
        caption = next((row[k] for k in TEXTS if isinstance(row, dict) and isinstance(row.get(k), str)), None)
        if caption is None or not isinstance(row.get("file_name"), str):
            raise InputsError(f"{table}, row {number}, has no file_name, or no caption under {', '.join(TEXTS)}")
        out.append(((table.parent / row["file_name"]).resolve(), caption))
    return out
