"""What torch prints while it captures a model, kept off the terminal; what the model's own code says is not.

torch.export dumps the graph it has so far to stderr whenever it stops, and logs and warns about its own insides.  That
it stopped is told by our own error, and often another way leads on.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_INSIDES = ("torch.export", "torch._export", "torch.fx", "torch._functorch", "torch._subclasses", "torch._dynamo")
_TORCH = (str(Path(torch.__file__).parent), sysconfig.get_path("stdlib"), str(Path(__file__).parent))
_SITE = sysconfig.get_path("purelib")  # lies in the standard library's folder, and is none of it


class _Others:
    """A stream that passes on what code outside torch's capture writes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        name = str(sys._getframe(1).f_globals.get("__name__", ""))
        return len(text) if name.startswith(_INSIDES) else int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, torch says nothing of how it captures a model; afterwards the model's own warnings are given."""
    loggers = [logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.startswith(_INSIDES)]
    loud = [x for x in loggers if not x.disabled]
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for x in loud:
                x.disabled = True
            with contextlib.redirect_stderr(_Others(sys.stderr)):
                yield
    finally:
        for x in loud:
            x.disabled = False
        _tell(heard)


def _tell(heard: list[warnings.WarningMessage]) -> None:
    """Give the warnings that come from outside torch and Python, each once."""
    own = {(str(w.message), w.category, w.filename, w.lineno) for w in heard if _foreign(w.filename)}
    for message, category, filename, line in sorted(own, key=lambda x: (x[2], x[3], x[0])):
        if not category.__module__.startswith("torch"):
            warnings.warn_explicit(message, category, filename, line)


def _foreign(filename: str) -> bool:
    own, stdlib, ours = _TORCH
    site = filename.startswith(_SITE)
    return not filename.startswith((own, ours)) and (site or not filename.startswith(stdlib))
