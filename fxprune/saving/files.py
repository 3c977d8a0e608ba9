"""Files of a folder that may be a stranger's: regular files inside it, of a bounded size where they are text.

A pipe would be waited for, a device read for ever, a link could show any file of this machine.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxprune.errors import SaveError

_VARIANT = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)
MOST_TEXT = 256 * 2**20  # bytes of one JSON file; the largest models need a hundredth of it
MOST_FILES = 100_000
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def require_data(directory: Path) -> None:
    """Check that a folder holds regular files and folders only; links may lead to regular files inside it.

    Raises:
        SaveError: it holds something else, or more files than anybody saves.
    """
    inside = _home(directory)
    for count, entry in enumerate(_entries(directory)):
        if count >= MOST_FILES:
            raise SaveError(f"{directory} holds more than {MOST_FILES:,} files: fxprune wrote no such folder")
        path = Path(entry.path)
        if entry.is_symlink():
            _require_inside(path, inside)
        elif not entry.is_dir(follow_symlinks=False):
            _require_regular(path, entry.stat(follow_symlinks=False).st_mode)


def read_bytes(path: Path) -> bytes:
    """The bytes of a small regular file.

    Raises:
        SaveError: it is no regular file, or too large for a text.
        OSError: as `open`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        _require_regular(path, found.st_mode)
        if found.st_size > MOST_TEXT:
            raise SaveError(f"{path} has {found.st_size:,} bytes, more than any file of its kind that fxprune reads")
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SaveError: there is none.
    """
    try:
        data = json.loads(read_bytes(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise SaveError(f"{path} cannot be read: {type(e).__name__}: {e}") from e
    if not isinstance(data, dict):
        raise SaveError(f"{path} is damaged: it holds a {type(data).__name__}, not an object")
    return data


def named(file: str, variant: str | None) -> str:
    """The name that a file has for a variant of a model, as other libraries build it.

    >>> named("model.safetensors", "fp16")
    'model.fp16.safetensors'

    Raises:
        SaveError: the variant's name cannot be part of one.
    """
    if variant is None:
        return file
    if not _VARIANT.fullmatch(variant):
        raise SaveError(f'variant={variant!r:.60} must be letters, digits and underscores, such as "fp16"')
    stem, _, kind = file.rpartition(".")
    return f"{stem}.{variant}.{kind}"


def variants(directory: Path, file: str) -> list[str | None]:
    """The variants of which a folder holds such a file; None is the one without a name, and comes first."""
    stem, _, kind = file.rpartition(".")
    ends = [(p.name.removeprefix(f"{stem}."), p) for p in directory.glob(f"{stem}.*{kind}")]
    names = sorted(end.removesuffix(f".{kind}") for end, _ in ends if end != kind)
    return [*([None] if (directory / file).exists() else []), *(n for n in names if _VARIANT.fullmatch(n))]


def flush(directory: Path) -> None:
    """Have the system put a folder with all that it holds on the disk."""
    for entry in _entries(directory):
        _sync(entry.path)
    _sync(directory)


def flush_entry(path: Path) -> None:
    """Have the system put on the disk what a path's name stands for: the entry in the folder above."""
    _sync(path.parent)


def flush_file(path: Path) -> None:
    """Have the system put what a file holds on the disk."""
    _sync(path)


def _sync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as e:  # some file systems cannot flush a folder; a disk that refuses has another number
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        for entry in found:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))


def _home(directory: Path) -> Path:
    """Where links may lead: the folder; or, in a hub's cache, that of the model, whose files lie beside."""
    real = directory.resolve()
    caches = (p.parent for p in real.parents if p.name == "snapshots" and (p.parent / "blobs").is_dir())
    return next(caches, real)


def _require_inside(path: Path, inside: Path) -> None:
    try:
        real = path.resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as e:
        raise SaveError(f"{path} is a link that leads nowhere: {type(e).__name__}") from e
    if not real.is_relative_to(inside) or not regular:
        raise SaveError(f"{path} is a link to {real}, which is no file of that folder; put a copy in its place")


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise SaveError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}: fxprune reads files alone")
