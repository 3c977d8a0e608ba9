"""Checksums over what a folder holds: bytes that changed on the disk are told.

    checksums   {file: SHA-256 of its bytes}; that of `fxprune.json` is over its values, without this entry

They find damage, not malice: whoever changes a file can change its checksum.  A folder without them is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fxprune.errors import SaveError
from fxprune.saving.files import flush_file, read_object

HEADER = "fxprune.json"
ENTRY = "checksums"
_HEADER = re.compile(r"fxprune\.\w+\.json", re.ASCII)  # of a variant
CHUNK = 2**20
THREADS = 2  # that make checksums beside the one that writes


def of_header(data: Mapping[str, Any]) -> str:
    """The checksum of the values of a `fxprune.json`."""
    rest = {key: value for key, value in data.items() if key != ENTRY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def of_files(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """The checksums of some files of a folder."""
    return {name: _of_file(directory / name) for name in sorted(names)}


class Beside:
    """Checksums of files that are done, made on threads while others are written; they are on the disk then, too."""

    def __init__(self) -> None:
        self._made: dict[str, Future[str]] = {}
        self._thread = ThreadPoolExecutor(THREADS, "fxprune-checksums")

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, path: Path) -> None:
        """Begin with a file, which is not written to any more."""
        self._made[path.name] = self._thread.submit(_settled, path)

    def found(self) -> dict[str, str]:
        """File name -> checksum.

        Raises:
            OSError: the disk refuses.
        """
        return {name: made.result() for name, made in self._made.items()}


def _settled(path: Path) -> str:
    found = _of_file(path)
    flush_file(path)
    return found


def require(directory: Path, expected: Mapping[str, str]) -> None:
    """Check that files are as they were written.

    Raises:
        SaveError: one is not, or is missing.
    """
    for name, checksum in expected.items():
        try:
            found = _of_file(directory / name)
        except OSError as e:
            raise SaveError(f"{directory / name} cannot be read: {type(e).__name__}: {e}") from e
        if found != checksum:
            raise SaveError(
                f"{directory / name} is not as it was written (its checksum differs): it is damaged, or was edited. "
                f'Save it again; to read it all the same, take "{ENTRY}" out of {directory / HEADER}'
            )


def _of_file(path: Path) -> str:
    if path.name == HEADER or _HEADER.fullmatch(path.name):
        return of_header(read_object(path))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
