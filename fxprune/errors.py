"""The one family of errors that fxprune raises on purpose.

Every message says what happened, where, and what to type.  Catching `FxPruneError` catches them all.
"""

from __future__ import annotations

import unicodedata
from typing import Any

DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Text in which what would steer a terminal or turn lines around stands as its code; for all that a file says.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(c if c in "\n\t" or not _steers(c) else c.encode("unicode_escape").decode() for c in text)


def _steers(character: str) -> bool:
    """Control characters, those that set the direction of text, line separators, and halves of pairs."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in DIRECTIONS


class FxPruneError(Exception):
    """Base class of every error that fxprune raises on purpose.

    `kept` is the trained model where something failed only after the work, else None; the message says where it lies.
    """

    kept: Any = None

    def __str__(self) -> str:
        return printable(Exception.__str__(self))


class TraceError(FxPruneError):
    """The model could not be captured by `torch.export`, or its example inputs do not fit."""


class InputsError(FxPruneError):
    """Example inputs, data or a loss are missing, or have the wrong form."""


class CriterionError(FxPruneError):
    """A criterion is unknown, returned something of the wrong shape, or returned NaN."""


class BudgetError(FxPruneError):
    """The asked budget is out of range or cannot be reached; says how far one can go and what is in the way.

    `reachable` is the largest reachable ratio, where it is known.
    """

    def __init__(self, message: str, reachable: float | None = None) -> None:
        super().__init__(message)
        self.reachable = reachable


class PlanError(FxPruneError):
    """A plan does not fit the model it is applied to, or is damaged."""


class RewriteError(FxPruneError):
    """The dense model could not be built; the input model is unchanged."""


class VerifyError(FxPruneError):
    """The dense model does not compute what the masked model computes; the input model is unchanged."""


class SaveError(FxPruneError):
    """A folder cannot be written, or is damaged, foreign, or of a newer format."""


class PluginError(FxPruneError):
    """A plugin is unknown, failed to import, or broke its contract."""
