"""Memoised functions take equal integers for the same; integers that remember where they came from are not."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

_OTHERS = sys.stdlib_module_names | {"torch", "sympy", "mpmath", "numpy"}  # see no integers of a model, or not as such


@contextlib.contextmanager
def bypassed(model: nn.Module, kind: type) -> Iterator[None]:
    """Within, what `functools.lru_cache` memoised is computed anew for arguments that hold a `kind`.

    Otherwise a cache (einops has one) would answer one layer with the integers of another, or of an earlier trace.
    Functions in modules and methods of the model's classes are found; memoised functions in closures are not.
    """
    modules = (m for name, m in list(sys.modules.items()) if name.partition(".")[0] not in _OTHERS)
    classes = {cls for m in model.modules() for cls in type(m).__mro__}
    undo: list[tuple[Any, str, Any]] = []
    try:
        for owner in (*modules, *classes):
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if isinstance(value, functools._lru_cache_wrapper):
                    setattr(owner, name, _anew(value, kind))
                    undo.append((owner, name, value))
        yield
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def _anew(memoised: Any, kind: type) -> Callable[..., Any]:
    @functools.wraps(memoised)
    def call(*args: Any, **kwargs: Any) -> Any:
        fresh = any(isinstance(x, kind) for x in pytree.tree_leaves((args, kwargs)))
        return (memoised.__wrapped__ if fresh else memoised)(*args, **kwargs)

    for method in ("cache_clear", "cache_info", "cache_parameters"):  # `wraps` leaves them out
        setattr(call, method, getattr(memoised, method))
    return call
