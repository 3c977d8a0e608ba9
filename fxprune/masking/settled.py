"""Forwards in train mode made comparable: what is drawn at random is one constant, whatever the shape.

Dropout keeps everything, a draw gives a half everywhere, and batch norms use the averages that they hold, since
statistics of two samples would blow up the noise of a float.  All of this is a channel's own affair, so a missed
coupling still shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_HALF = {"rand", "rand_like", "randn", "randn_like", "normal", "uniform", "uniform_", "normal_", "exponential_"}
_HALF |= {"exponential", "normal_functional", "log_normal_", "cauchy_", "geometric_"}
_KEPT = {"bernoulli", "bernoulli_"}  # what a dropout or a skipped layer draws: keep
_RATES = {"dropout", "dropout_p"}
_NORMS = {"native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"}


class Settled(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, forwards in train mode are deterministic functions that two shapes of a model can be compared on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.rpartition("::")[2]
        args, kwargs = _without_chance(func, name, args, dict(kwargs or {}))
        out = func(*args, **kwargs)
        if name in _HALF and isinstance(out, torch.Tensor):
            return out.fill_(0.5)
        if name in _KEPT:
            return out.fill_(1)
        return out


def _without_chance(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with no dropout, and batch norms on the averages that they hold."""
    values: dict[str, Callable[[Any], Any]] = {}
    if name == "native_dropout":
        values["p"] = lambda _: 0.0
    names = [a.name for a in func._schema.arguments]
    values |= {rate: lambda old: 0.0 if isinstance(old, float) else old for rate in _RATES & set(names)}
    if name in _NORMS and _held(names, args, kwargs):
        values |= dict.fromkeys(("training", "train"), lambda _: False)
    args = tuple(values[n](a) if n in values else a for n, a in zip(names, args, strict=False))
    return args, {n: values[n](a) if n in values else a for n, a in kwargs.items()}


def _held(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return given.get("running_mean") is not None
