"""Folders that are written whole or not at all.

A new folder is filled beside the one that it replaces, and put on the disk.  Then the two change places:

    .DIR.<token>.new <-> DIR                                       in one step, where the system can
    DIR -> .DIR.<token>.old        .DIR.<token>.new -> DIR         in two, where it cannot

and the old one goes.  An error between the two steps puts the old folder back.  A kill there leaves both whole, under
these names, and `standing` finds the old one.  What a kill left and nobody has written to for an hour goes when the
same folder is next written; a copy of DIR only once DIR is there.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from fxprune.errors import SaveError
from fxprune.saving.card import CARD, is_own
from fxprune.saving.exchange import exchange
from fxprune.saving.files import flush, flush_entry, named, variants
from fxprune.saving.header import HEADER, SavedPipeline
from fxprune.saving.header_reading import read
from fxprune.saving.weights import INDEX, WEIGHTS, files

DIGITS = 8  # of a token
STOCK = ("config.json", "model_index.json")  # what the libraries call the heads of their folders
STALE = 3600.0  # seconds without a write, after which nobody is writing


def claim(directory: str | os.PathLike[str]) -> Path:
    """The real path of a folder that may be written: it is new, empty, or a previous save and nothing else.

    Raises:
        SaveError: where something would be lost.
    """
    try:
        path = Path(directory).resolve()
        if (left := standing(path)) != path:  # finish what a kill cut off
            os.rename(left, path)
        if path.exists() and not path.is_dir():
            raise SaveError(f"{path} is a file; name a new folder")
        foreign = _foreign(path) if path.exists() else []
    except OSError as e:
        raise SaveError(f"{directory} cannot be written: {type(e).__name__}: {e}") from e
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise SaveError(
            f"{path} holds files that fxprune did not write ({', '.join(foreign[:3])}{more}), and they would be lost; "
            "name a new folder, or move them away first"
        )
    return path


def _foreign(path: Path) -> list[str]:
    """What a folder holds beside a previous save."""
    try:
        own = {file for variant in variants(path, HEADER) or [None] for file in files_of(path, variant)}
    except SaveError:
        return sorted(entry.name for entry in path.iterdir())
    own = own | {CARD} if is_own(path / CARD) else own - {CARD}
    found = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_symlink() or not p.is_dir()}
    return sorted(found - own)


def files_of(path: Path, variant: str | None = None) -> set[str]:
    """The files of one variant of a save, all but its card.

    Raises:
        SaveError: there is no such save.
    """
    header = read(path, variant)
    if isinstance(header, SavedPipeline):
        return {named(HEADER, variant), *header.files}
    return {named(HEADER, variant), *files(path, variant), named(INDEX, variant)}


@contextlib.contextmanager
def replacing(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `directory` when the block ends without an error.

    Raises:
        SaveError: see `claim`; or the disk refuses.
    """
    from safetensors import SafetensorError

    path = claim(directory)
    token = uuid.uuid4().hex[:DIGITS]
    new, old = path.with_name(f".{path.name}.{token}.new"), path.with_name(f".{path.name}.{token}.old")
    try:
        new.mkdir(parents=True)
        yield new
        flush(new)
        _swap(path, new, old)
        flush_entry(path)
    except (OSError, SafetensorError) as e:
        raise SaveError(f"{path} cannot be written: {type(e).__name__}: {e}; what was there is as it was") from e
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    for folder in (*_left_by_kills(path, "new"), *_left_by_kills(path, "old")):
        if time.time() - _last_written(folder) > STALE:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def adding(directory: str | os.PathLike[str], variant: str | None = None) -> Iterator[Path]:
    """A new folder to write a save into, whose files go into `directory` when the block ends, beside what others hold.

    An earlier save of the variant goes, its header first and the new one's last, so that no reader takes half of it
    for a whole.  A card that somebody has written stays.

    Raises:
        SaveError: another library's model is there, of which its files would be taken for a part; or the disk refuses.
    """
    path = Path(directory).resolve()
    if found := next((name for name in STOCK if (path / name).exists()), None):
        raise SaveError(
            f"{path} holds another model or pipeline ({found}), which would be mixed up with it; name a new folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path, prefix=".fxprune-") as inner:
            yield (new := Path(inner) / "new")
            header = named(HEADER, variant)
            (path / header).unlink(missing_ok=True)
            for file in _weights_in(path, variant):
                file.unlink()
            if (path / CARD).exists() and not is_own(path / CARD):
                (new / CARD).unlink()
            for file in sorted(new.iterdir(), key=lambda p: p.name == header):
                os.replace(file, path / file.name)
            flush_entry(path / header)
    except OSError as e:
        raise SaveError(f"{path} cannot be written: {type(e).__name__}: {e}") from e


def _weights_in(path: Path, variant: str | None) -> list[Path]:
    """The files of tensors of a variant, whether or not an index still names them."""
    stem = named(WEIGHTS, variant).removesuffix(".safetensors")
    whole = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors", re.ASCII)
    return [p for p in path.iterdir() if whole.fullmatch(p.name) or p.name == named(INDEX, variant)]


def carry_variants(old: Path, new: Path, variant: str | None) -> None:
    """Copy what a folder holds of other variants into the one that will take its place."""
    for other in variants(old, HEADER):
        if other != variant:
            for name in files_of(old, other):
                if (old / name).exists() and not (new / name).exists():
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(old / name, new / name)


def _left_by_kills(path: Path, kind: str) -> list[Path]:
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * DIGITS}.{kind}"))


def _last_written(folder: Path) -> float:
    try:
        return max(p.stat().st_mtime for p in (folder, *folder.rglob("*")))
    except OSError:  # somebody writes, or removes it
        return time.time()


def _swap(path: Path, new: Path, old: Path) -> None:
    if path.exists():
        if exchange(new, path):
            return
        os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        if old.exists():
            os.rename(old, path)
        raise


def standing(directory: Path) -> Path:
    """The folder that stands at a path: after a kill between the two renames what was there before, else itself.

    Raises:
        SaveError: the system does not take such a path.
    """
    try:
        path = directory.resolve()
        left = [] if path.exists() else _left_by_kills(path, "old")
    except OSError as e:
        raise SaveError(f"directory={str(directory)[:100]!r} cannot be read: {e.strerror}; name another") from e
    return max(left, key=_last_written) if left else directory
