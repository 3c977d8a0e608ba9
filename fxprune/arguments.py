"""What arguments may be: one table by name, read before any work.

    @takes(graph=ChannelGraph)            the arguments of a function: of these kinds, and others of those in `COMMON`
    require_fields(self, after=COUNT)     the fields of a dataclass, in its `__post_init__`
    require_options(self, CriterionError) the same for options of plugins, by what the class says that they are

A class stands for its instances.  Ranges that hang on other values are checked where these are known.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import BudgetError, FxPruneError, InputsError, PlanError, SaveError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kind:
    """A kind of argument: how it is called in a message, whether a value is one, and the error if it is not."""

    told: str
    fits: Callable[[Any], bool]
    error: type[FxPruneError] = InputsError

    @property
    def or_none(self) -> Kind:
        """The same, where None may stand, too."""
        return replace(self, told=f"{self.told}, or None", fits=lambda v: v is None or self.fits(v))

    def raising(self, error: type[FxPruneError]) -> Kind:
        """The same with another error."""
        return replace(self, error=error)


AKind: TypeAlias = "Kind | type | None"


def _is(value: Any, kind: type) -> bool:
    """Whether a value is a number of that kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def number(told: str, low: float = -math.inf, high: float = math.inf, open_low: bool = False) -> Kind:
    """Finite numbers from `low` (or above it) to `high`."""

    def fits(value: Any) -> bool:
        return _is(value, Real) and math.isfinite(value) and low <= value <= high and not (open_low and value == low)

    return Kind(told, fits)


def whole(told: str, low: int, high: int = 2**31) -> Kind:
    """Integers from `low` to `high`."""
    return Kind(told, lambda v: _is(v, Integral) and low <= int(v) <= high)


def one_of(*kinds: type, told: str) -> Kind:
    """Instances of some classes."""
    return Kind(told, lambda v: isinstance(v, kinds))


def _is_path(value: Any) -> bool:
    try:
        text = os.fspath(value)
    except TypeError:
        return False
    return isinstance(text, str) and bool(text) and "\0" not in text


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, (str, torch.device)) and torch.device(value) is not None
    except RuntimeError:
        return False


def _is_batches(value: Any) -> bool:
    if isinstance(value, (np.generic, type)):  # a numpy number has __getitem__ as well
        return False
    return isinstance(value, Iterable) or hasattr(value, "__getitem__")


def _all(values: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether values that can be read again are all of a kind."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or not isinstance(values, Iterable):
        return False
    return all(map(fits, values))


def _are_names(value: Any) -> bool:
    """Text is iterable, a class can be called."""
    return callable(value) or (isinstance(value, Iterable) and not isinstance(value, (Tensor, np.ndarray)))


def _are_shares(value: Any) -> bool:
    return hasattr(value, "harm") or (isinstance(value, Mapping) and all(isinstance(k, str) for k in value))


FLAG = Kind("True or False", lambda v: isinstance(v, bool) or type(v).__name__ in ("bool_", "bool"))
TEXT = one_of(str, told="text")
COUNT = whole("a whole number of at least 1", 1)
INTEGER = whole("a whole number", -(2**31))
FROM_ZERO = whole("a whole number of at least 0", 0)
POSITIVE = number("a number above 0", 0, open_low=True)
NOT_NEGATIVE = number("a number of at least 0", 0)
NUMBER = number("a finite number")
PLAIN = {  # fields of dataclasses, as they are annotated
    "float": Kind("a number", lambda v: _is(v, Real) and not math.isnan(v)),
    "int": INTEGER,
    "bool": FLAG,
    "str": TEXT,
}
SHARE = Kind("a number in [0, 1), such as 0.4", lambda v: _is(v, Real), BudgetError)
PATH = Kind("a path: text that is not empty, or a pathlib.Path", _is_path, SaveError)
FUNCTION = Kind("something that can be called", callable)
MODULE = one_of(nn.Module, told="an nn.Module")
MAPPING = one_of(Mapping, told="a dict")
BATCHES = Kind("batches, in a list, a DataLoader or another iterable", _is_batches)
RATIOS = Kind("a list of shares in (0, 1), such as (0.3, 0.5)", lambda v: _all(v, SHARE.fits))
INDICES = Kind("a list of channels' numbers", lambda v: _all(v, FROM_ZERO.fits))
SEVERAL = Kind("a list of names", lambda v: _all(v, TEXT.fits), PlanError)
TENSORS = Kind(
    "a list of tensors",
    lambda v: isinstance(v, Iterable) and (not hasattr(v, "__len__") or _all(v, lambda t: isinstance(t, Tensor))),
)
SHARES = Kind("a dict of group name -> share of its channels, or a table of fxprune.sensitivity", _are_shares)
NAMES = Kind("names, globs, module types such as nn.Conv2d, or callables (tensor name, module) -> bool", _are_names)

SHAPE = Kind(
    '"free", "stock", or the constructor of the model with what it was given, a functools.partial',
    lambda v: v in ("free", "stock") if isinstance(v, str) else callable(v),
)

_PLAIN = (type(None), str, bytes, Real, list, dict, tuple, set, type, Tensor)
MOST = 10**5  # tensors of a model
MODEL = Kind("an nn.Module, or a pipeline around one", lambda v: not isinstance(v, _PLAIN))

COMMON: Mapping[str, Kind] = {
    "model": MODEL,
    "ratio": SHARE.or_none,
    "target": NUMBER.or_none.raising(BudgetError),
    "max_ratio": replace(SHARE, told="a number in (0, 1]").or_none,
    "min_width": INTEGER.raising(BudgetError),
    "ratios": SHARES.or_none.raising(BudgetError),
    "ignore": NAMES,
    "round_to": one_of(int, str, np.integer, told='a whole number, or "auto"').raising(BudgetError),
    "exact_norms": FLAG,
    "shape": SHAPE,
    "nearest": FLAG,
    "scope": TEXT.or_none.raising(BudgetError),
    "legal_for": TEXT.or_none.raising(BudgetError),
    "of": TEXT.raising(BudgetError),
    "attention": TEXT,
    "granularity": TEXT.raising(BudgetError),
    "replace": TEXT.or_none,
    "data": BATCHES.or_none,
    "held_out": BATCHES.or_none,
    "loss": FUNCTION.or_none,
    "metric": FUNCTION.or_none,
    "samples": whole("a whole number from 1 to 1,000,000", 1, 10**6),
    "seed": whole("a whole number in [0, 2**62)", 0, 2**62),
    "seeds": whole("a whole number from 1 to 1,000,000", 1, 10**6),
    "steps": COUNT.or_none,
    "reduce": TEXT.or_none,
    "normalize": TEXT.or_none,
    "inplace": FLAG,
    "verify": FLAG,
    "strict": FLAG,
    "progress": FLAG,
    "higher_is_better": FLAG,
    "directory": PATH,
    "subfolder": Kind("text", lambda v: isinstance(v, str) and "\0" not in v, SaveError).or_none,
    **dict.fromkeys(("revision", "variant"), TEXT.or_none.raising(SaveError)),
    "token": one_of(str, bool, told="text, True or False").or_none.raising(SaveError),
    "path": PATH.raising(InputsError),
    "out": PATH.or_none.raising(InputsError),
    "metrics": MAPPING.or_none.raising(SaveError),
    "device": Kind('a device, such as "cpu" or "cuda:0"', _is_device),
    "reuse": one_of(dict, told="a dict").or_none,
}


def takes(*, error: type[FxPruneError] | None = None, **kinds: AKind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose arguments are of their kinds before it runs.

    Args:
        error: what is raised instead of a kind's own error.
        kinds: by name of an argument; None: it is checked elsewhere.

    Raises:
        FxPruneError: an argument is of another kind (where the function is called).
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        table = {n: _kind(k) for n, k in {**COMMON, **kinds}.items() if n in signature.parameters and k is not None}
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            for argument, value in given.arguments.items():
                if argument in table:
                    require(name, argument, value, table[argument], error)
                    given.arguments[argument] = _plain(value)
            return function(*given.args, **given.kwargs)

        return called

    return wrap


def require_fields(made: Any, **kinds: AKind) -> None:
    """Check the fields of a dataclass, by their kinds or those of `COMMON`.

    Raises:
        FxPruneError: one is of another kind.
    """
    for field in fields(made):
        kind = kinds[field.name] if field.name in kinds else COMMON.get(field.name)
        if kind is not None:
            _require_field(made, field.name, _kind(kind))


def require_options(made: Any, error: type[FxPruneError], **kinds: AKind) -> None:
    """Check the fields of a criterion or a scheduler: those annotated as plain numbers, flags or text, and `kinds`.

    Raises:
        FxPruneError: one is of another kind; of the class `error`.
    """
    for field in fields(made):
        kind = kinds.get(field.name, PLAIN.get(str(field.type)))
        if kind is not None:
            _require_field(made, field.name, _kind(kind), error)


def _require_field(made: Any, name: str, kind: Kind, error: type[FxPruneError] | None = None) -> None:
    value = getattr(made, name)
    require(type(made).__name__, name, value, kind, error)
    object.__setattr__(made, name, _plain(value))  # dataclasses here are frozen


def _plain(value: Any) -> Any:
    """A number as Python's own: numpy's and fractions go neither into JSON nor into torch."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def tensors(name: str, values: Iterable[Any]) -> list[Tensor]:
    """Tensors in a list.

    Raises:
        InputsError: something else is among them, or they have no end.
    """
    out: list[Tensor] = []
    for value in values:
        if not isinstance(value, Tensor) or len(out) == MOST:
            what = f"more than {MOST:,}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputsError(f"{name}= holds {what}; pass {TENSORS.told}")
        out.append(value)
    return out


@contextmanager
def read_from(name: str, value: Any, what: str) -> Iterator[None]:
    """Within, an argument is read that holds what something else wrote.

    Raises:
        InputsError: it holds something else.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise InputsError(f"{name}={shown(value)} is not {what}: {type(e).__name__}: {e!s:.200}") from e


def require(where: str, name: str, value: Any, kind: Kind, error: type[FxPruneError] | None = None) -> None:
    """Check one argument.

    Raises:
        FxPruneError: it is of another kind; names it, what it is and what it may be.
    """
    try:
        fits = kind.fits(value)
    except Exception:  # noqa: BLE001 - an odd object may raise anything where it is looked at
        fits = False
    if not fits:
        what = f"{name} must be {kind.told}; this is of type {type(value).__name__}"
        raise (error or kind.error)(f"{where}({name}={shown(value)}): {what}")


def _kind(kind: Kind | type) -> Kind:
    if isinstance(kind, Kind):
        return kind
    error = PlanError if kind.__name__ in ("Plan", "Draft") else InputsError
    name = kind.__name__
    article = "an" if name[0] in "AEIO" else "a"
    return Kind(f"{article} {kind.__module__.partition('.')[0]}.{name}", lambda v: isinstance(v, kind), error)


def shown(value: Any) -> str:
    """A value for a message, short, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - see `require`
        return "..."
    return text if len(text) <= 60 else f"{text[:57]}..."
