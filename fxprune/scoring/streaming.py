"""Batches that are read again and again, one in memory at a time, and the same ones each time.

list, tuple              as it is
generator                kept in memory, since it runs only once: at most `MOST` batches of it
DataLoader, any other    read anew at every pass, with the random numbers of the first; where the data tell no length
                         they may be endless, and `MOST` batches are read
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from fxprune.errors import InputsError
from fxprune.scoring.batches import batch_size, empty
from fxprune.scoring.identity import digest, length
from fxprune.scoring.randomness import Draws

MOST = 1000  # batches of data that tell no length
_END = object()


class Batches:
    """The batches of data that can be iterated anew.

    Random numbers of python, numpy and torch, and the generators of a DataLoader, are those of the first pass in every
    pass, and nothing is drawn from outside.

    Args:
        data: an iterable, read once a pass.
        most: how many batches to read; None: all, or `MOST` where the data tell no length.

    Raises:
        InputsError: there is no batch, one is empty, or a pass gives other batches than the first.
    """

    def __init__(self, data: Iterable[Any], most: int | None = None) -> None:
        self.data, self.most = data, most
        self.number, self.current = 0, None
        self._draws = Draws(data)
        self._seen: list[str] = []  # fingerprints of the batches of the first pass
        self._passed = False
        self._sizes: list[int] | None = None

    def sizes(self) -> list[int]:
        """Samples of every batch; the first time they are read for that, which must not be within another pass."""
        if self._sizes is None:
            self._sizes = [batch_size(batch) for batch in self]
        return self._sizes

    def __len__(self) -> int:
        if self._passed:
            return len(self._seen)
        n = length(self.data)
        if n is None:
            raise TypeError("these data tell no length")
        return n if self.most is None else min(n, self.most)

    def __iter__(self) -> Iterator[Any]:
        number = 0
        for batch in self._read():
            if number == self._limit():
                self._tell()
                break
            self._check(number, batch)
            self.number, self.current = number, batch
            yield batch
            number += 1
        self.current = None
        if not number and not self._passed:
            raise InputsError("data holds no batch; pass an iterable with at least one (a generator runs only once)")
        if self._passed and number < len(self._seen):
            raise InputsError(
                f"data gave {len(self._seen)} batches and now gives {number}; pass something that can be iterated "
                "again and again, such as a list or a DataLoader"
            )
        self._passed = True

    def _read(self) -> Iterator[Any]:
        self._draws.rewind()
        with self._draws:
            found = iter(self.data)
        while True:
            with self._draws:
                batch = next(found, _END)
            if batch is _END:
                return
            yield batch

    def _limit(self) -> int | None:
        return MOST if self.most is None and length(self.data) is None else self.most

    def _tell(self) -> None:
        if self.most is None and not self._passed:
            tell_cut(type(self.data).__name__)

    def _check(self, number: int, batch: Any) -> None:
        if empty(batch):
            raise InputsError(f"batch {number} of data is empty; leave it out")
        found = digest(batch)
        if number == len(self._seen) and not self._passed:
            self._seen.append(found)
        elif number >= len(self._seen) or found != self._seen[number]:
            raise InputsError(
                f"batch {number} of data is another one each time it is read: the data draw from a generator that "
                "fxprune does not know; seed it, or pass data=list(...), which keeps the batches in memory"
            )


def as_batches(data: Any, most: int | None = None) -> Any:
    """Data in a form that can be read several times; what is no iterable of batches stays as it is.

    Raises:
        InputsError: a batch in memory is empty.
    """
    if data is None or isinstance(data, (Tensor, Mapping, str, Batches)) or not isinstance(data, Iterable):
        return data
    if isinstance(data, (list, tuple)):
        found = data if most is None else data[:most]
    elif isinstance(data, Iterator):
        found = list(itertools.islice(data, MOST if most is None else most))
        if most is None and len(found) == MOST and next(data, _END) is not _END:
            tell_cut(type(data).__name__)
    else:
        return Batches(data, most)
    for number, batch in enumerate(found):
        if empty(batch):
            raise InputsError(f"batch {number} of data is empty; leave it out")
    return found


def number_of(batches: Iterable[Any], batch: Any) -> int:
    """The place of a batch among those in memory, or of the streamed one that was read last; 0 for any other."""
    if isinstance(batches, Batches):
        return batches.number if batch is batches.current else 0
    return next((i for i, b in enumerate(batches) if b is batch), 0)


def tell_cut(kind: str) -> None:
    """Say that not all was read."""
    warnings.warn(
        f"data is a {kind} that tells no length and may be endless: its first {MOST} batches are used; pass "
        "max_batches= for another number",
        stacklevel=2,
    )
