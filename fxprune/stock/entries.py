"""The entries of a config: numbers in plain data, by their path."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Path: TypeAlias = "tuple[str | int, ...]"
Number: TypeAlias = "int | float"
Changes: TypeAlias = Mapping[Path, Any]  # numbers, or a list with one item for each layer


def numbers(config: Any, at: Path = ()) -> Iterator[tuple[Path, Number]]:
    """Every number in a config, with its path; True and False are none."""
    items: Any = config.items() if isinstance(config, Mapping) else enumerate(config)
    for key, value in items:
        if isinstance(value, (Mapping, list, tuple)):
            yield from numbers(value, (*at, key))
        elif type(value) in (int, float):
            yield (*at, key), value


def edited(config: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """A copy of a config with other numbers in it."""
    out: dict[str, Any] = copy.deepcopy(dict(config))
    for path, value in changes.items():
        _put(out, path, value)
    return out


def _put(held: Any, path: Path, value: Any) -> Any:
    """The same container with another number; tuples are made anew."""
    key, *rest = path
    new = _put(held[key], tuple(rest), value) if rest else value
    if isinstance(held, tuple):
        assert isinstance(key, int)
        return (*held[:key], new, *held[key + 1 :])
    held[key] = new
    return held


def told(path: Path) -> str:
    """A path as one types it.

    >>> told(("text_config", "hidden_size")), told(("block_out_channels", 1))
    ('text_config.hidden_size', 'block_out_channels[1]')
    """
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).removeprefix(".")


def rows(paths: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Two or more entries of one list that follow each other, the shortest rows first."""
    lists: dict[Path, list[Path]] = {}
    for path in paths:
        if isinstance(path[-1], int):
            lists.setdefault(path[:-1], []).append(path)
    found = [tuple(row[a:b]) for row in lists.values() for a in range(len(row)) for b in range(a + 2, len(row) + 1)]
    return sorted(found, key=len)


def get(config: Any, path: Path) -> Any:
    """What stands in a config at a path."""
    for key in path:
        config = config[key]
    return config
