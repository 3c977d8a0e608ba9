"""Options come as keywords, or gathered in one value: one way or the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from fxprune.errors import InputsError

T = TypeVar("T")


def gathered(kind: type[T], given: T | None, keywords: Mapping[str, Any]) -> T:
    """`given`, or a `kind` made of the keywords.

    Args:
        kind: a frozen dataclass whose fields the keywords are.

    Raises:
        InputsError: `given` is something else, or a keyword is set beside it.
    """
    if given is None:
        return kind(**keywords)
    name = kind.__name__
    if not isinstance(given, kind):
        raise InputsError(f"{name.lower()}= is a {type(given).__name__}; pass an fxprune.{name}(...)")
    defaults = {f.name: f.default for f in fields(kind)}  # type: ignore[arg-type]
    for key, value in keywords.items():
        if value is not defaults[key] and value != defaults[key]:
            raise InputsError(
                f"{key}={value!r} and {name.lower()}= both set the same; pass {name.lower()}={name}({key}=..., ...)"
            )
    return given
