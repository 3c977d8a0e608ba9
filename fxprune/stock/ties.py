"""Ties: entries of a config that can shrink together, each found by trying and proven once.

one entry                  intermediate_size
a row of a list            block_out_channels[1..3], where one alone makes layers come or go
two or three entries       hidden_size with its heads, heads with key-value heads, in proportion
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from fxprune.stock.entries import Changes, Number, Path, numbers, rows, told
from fxprune.stock.integers import read_integers
from fxprune.stock.oracle import Oracle, Refusal, Shapes, Snapshot

Proof = Callable[[Changes], Refusal | None]
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
JOINT = (1, 2, 3, 4, 6, 8, 16, 32)
TOGETHER = 3  # entries at most that are tried together, but for rows of a list
Axes: TypeAlias = frozenset[tuple[str, int]]
UNKNOWN: Axes = frozenset([("", -1)])  # where the constructor takes no other value
ROUNDED = (1 / 16, 1 / 8, 1 / 4)  # of a factor, where widths are rounded to multiples
MISSES = 2  # proofs that fail before a set of entries is given up


@dataclass(frozen=True)
class Tie:
    """Entries that shrink together: what each is, the smallest step of each, and the groups that narrow."""

    entries: tuple[Path, ...]
    values: tuple[Number, ...]
    steps: tuple[Number, ...]
    groups: tuple[int, ...]
    coarse: str = field(default="", repr=False)  # why no smaller step is possible

    def __str__(self) -> str:
        return " + ".join(
            told(p) if isinstance(v, float) else f"{told(p)} ({s} of {v})"
            for p, v, s in zip(self.entries, self.values, self.steps, strict=True)
        )


@dataclass(frozen=True)
class Ties:
    """What can shrink, and why the rest cannot."""

    ties: tuple[Tie, ...]
    refused: dict[str, Refusal]


def find_ties(oracle: Oracle, proof: Proof) -> Ties:
    """Every set of entries that can shrink.

    Args:
        proof: whether a stock model of such changes computes what it should; None if so.
    """
    found: list[Tie] = []
    refused: dict[tuple[Path, ...], Refusal] = {}
    values = {p: v for p, v in numbers(oracle.constructor.config) if v > (1 if isinstance(v, int) else 0)}
    read = read_integers(oracle.graph)
    touched = {p: t for p, v in values.items() if (t := _touched(oracle, read, p, v)) is not None}

    def attempt(entries: tuple[Path, ...]) -> None:
        made = _tie(oracle, proof, entries, [values[p] for p in entries])
        if isinstance(made, Tie):
            found.append(made)
        elif made is not None:
            refused[entries] = made

    for path in touched:
        if touched[path]:  # what sets no size cannot narrow anything by itself
            attempt((path,))
    free = [p for p in touched if isinstance(values[p], int) and _may_join(p, refused.get((p,)), touched)]
    for entries in (*rows(free), *_together(oracle, free, values, touched)):
        inside = any(set(tie.entries) <= set(entries) for tie in found)
        if not inside and not set(entries) <= {p for tie in found for p in tie.entries}:
            attempt(entries)
    done = {p for tie in found for p in tie.entries}
    return Ties(tuple(found), {told(p): why for (p, *more), why in refused.items() if not more and p not in done})


def _touched(oracle: Oracle, read: Container[tuple[str, str]], path: Path, value: Number) -> Axes | None:
    """The axes that an entry sizes, none if it sets only other numbers that sizes are made of; None if neither."""
    tries = [value / 2] if isinstance(value, float) else [v for v in (value - 1, value // 2) if v > 0]
    made = [oracle.snapshot({path: v}) for v in dict.fromkeys(tries)]
    base, taken = oracle.base, [m for m in made if isinstance(m, Snapshot)]
    assert isinstance(base, Snapshot)
    if not taken:
        return UNKNOWN
    sizes = frozenset(axis for m in taken for axis in _differing(base.shapes, m.shapes))
    other = {k for m in taken for k, v in base.attributes.items() if m.attributes.get(k) != v}
    return sizes if sizes or any(k in read for k in other) else None


def _differing(base: Shapes, made: Shapes) -> Iterator[tuple[str, int]]:
    """The axes of another size; -1 for tensors that come or go."""
    for name in base.keys() | made.keys():
        old, new = base.get(name), made.get(name)
        if old is None or new is None or len(old) != len(new):
            yield name, -1
        else:
            yield from ((name, d) for d, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)


def _may_join(path: Path, refused: Refusal | None, touched: Mapping[Path, Axes]) -> bool:
    """Whether an entry may shrink beside others: it moves no axis that is held, or another one moves it back."""
    if refused is None or refused.held is None:
        return True
    return any(refused.held in axes for other, axes in touched.items() if other != path)


def _together(
    oracle: Oracle, free: Sequence[Path], values: Mapping[Path, Number], touched: Mapping[Path, Axes]
) -> Iterator[tuple[Path, ...]]:
    """Entries that may only shrink together: they have a common divisor, and set sizes of the same tensors or groups.

    An entry that sets no size (a number of heads), or whose sizes are not known, may go with any other.
    """
    groups = {(a.tensor, a.axis): a.times.keys() for a in oracle.axes}
    parts: dict[Path, set[Any]] = {p: {name for name, _ in axes} for p, axes in touched.items()}
    for path, axes in touched.items():
        parts[path].update(g for axis in axes for g in groups.get(axis, ()))

    def linked(a: Path, b: Path) -> bool:
        own, other = parts[a], parts[b]
        return not own or not other or UNKNOWN in (touched[a], touched[b]) or bool(own & other)

    for count in range(2, TOGETHER + 1):
        for entries in itertools.combinations(free, count):
            pairs = sum(linked(a, b) for a, b in itertools.combinations(entries, 2))
            sized = any(touched[p] for p in entries)
            if sized and pairs >= count - 1 and math.gcd(*(int(values[p]) for p in entries)) > 1:
                yield entries


def _tie(oracle: Oracle, proof: Proof, entries: tuple[Path, ...], values: list[Number]) -> Tie | Refusal | None:
    """The smallest step that entries can take, or why they take none; None where they do not belong together."""
    refused: Refusal | None = None
    misses = 0
    for steps in _steps(oracle, entries, values):
        changes = {p: v - s for p, v, s in zip(entries, values, steps, strict=True)}
        widths = oracle.widths(changes)
        if isinstance(widths, Refusal):
            refused = refused or widths
            if widths.held and widths.held[1] >= 0:
                return widths
            continue
        if (moved := np.flatnonzero(widths != oracle.sizes)).size == 0:
            continue
        if len(entries) > 1 and _idle(oracle, changes):
            return None
        wrong = proof(changes)
        if wrong is None:
            return Tie(entries, tuple(values), steps, tuple(moved.tolist()), str(refused or ""))
        refused, misses = wrong, misses + wrong.compared
        if misses == MISSES:
            break
    return refused


def _steps(oracle: Oracle, entries: tuple[Path, ...], values: list[Number]) -> Iterator[tuple[Number, ...]]:
    """Steps to try, the smallest first; several entries in proportion."""
    if isinstance(values[0], float):
        if isinstance(widths := oracle.widths({entries[0]: values[0] / 2}), Refusal):
            yield (values[0] / 2,)  # whose refusal is told
        elif (moved := np.flatnonzero(widths != oracle.sizes)).size:
            most = int(oracle.sizes[moved].max())  # from which one channel goes, half a one above it lest it round
            yield (values[0] - narrowed(values[0], most, 1),)
            yield from ((values[0] * part,) for part in ROUNDED)
        return
    whole = [int(v) for v in values]
    common = math.gcd(*whole)
    sizes = STEPS if len(entries) == 1 else JOINT
    for j in sorted(
        {j for j in (*sizes, common // 4, common // 2, 2 * common // 3, 3 * common // 4) if 0 < j < common}
    ):
        yield tuple(v // common * j for v in whole)


def narrowed(value: float, width: int, by: int) -> float:
    """A factor that made `width` channels, such that it makes `by` fewer."""
    return value * (width - by + 0.5) / width


def _idle(oracle: Oracle, changes: Changes) -> bool:
    """Whether one of the entries makes no difference beside the others."""
    whole = oracle.snapshot(changes)
    return any(oracle.snapshot({q: v for q, v in changes.items() if q != p}) == whole for p in changes)
