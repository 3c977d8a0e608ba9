"""How the removed share grows from 0 to 1 over a run."""

from __future__ import annotations

from collections.abc import Callable

from fxprune.errors import PluginError

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cubic": lambda t: 1 - (1 - t) ** 3,  # Zhu and Gupta, 2017 ("AGP")
    "exponential": lambda t: (1 - 0.01**t) / (1 - 0.01),
}


def shape(name: str) -> Callable[[float], float]:
    """f: [0, 1] -> [0, 1] with f(0) = 0 and f(1) = 1.

    Raises:
        PluginError: for an unknown name.
    """
    if name not in SHAPES:
        raise PluginError(f"shape={name!r} is unknown; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
