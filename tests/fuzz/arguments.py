"""Odd arguments of every public function and constructor: a result, or an error of ours that names the argument.

The calls and what is right for them stand in `calls`.  Of each trial one or two arguments are odd; where one is, the
message must name it or what it stands for.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calls import CALLS, SMALL, arguments_of, called, names_it

import fxprune
from fuzz import sandbox
from fuzz.trials import REFUSED, RIGHT, Outcome, source
from fxprune.errors import FxPruneError

NOT_THIS = "not this object"


class Raising:
    """An object that raises wherever it is looked at."""

    def _no(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(NOT_THIS)

    __eq__ = __len__ = __iter__ = __bool__ = __float__ = __int__ = __index__ = __getitem__ = __call__ = _no
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError(NOT_THIS)


class Endless:
    """An iterable without an end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.ones(2, 4)


class Text(str):
    """A subclass of a plain type."""


VALUES: dict[str, Callable[[random.Random], Any]] = {
    "None": lambda r: None, "flag": lambda r: r.random() < 0.5, "integer": lambda r: r.randint(-3, 50),
    "large": lambda r: r.choice([2**31, 2**63, 2**64, -(2**63), 10**400]), "float": lambda r: r.uniform(-2, 2),
    "whole float": lambda r: float(r.randint(0, 5)), "tiny": lambda r: r.choice([1e-320, 1e-12, 5e-324, -1e-9]),
    "not finite": lambda r: r.choice([float("nan"), float("inf"), -float("inf")]), "complex": lambda r: 1j,
    "fraction": lambda r: Fraction(1, 3), "decimal": lambda r: Decimal("0.3"), "numpy float": lambda r: np.float32(0.3),
    "numpy integer": lambda r: np.int64(3), "numpy flag": lambda r: np.bool_(True), "numpy array": lambda r: np.ones(3),
    "empty array": lambda r: np.zeros(0), "array of objects": lambda r: np.array([None, "x"], dtype=object),
    "text": lambda r: r.choice(["", " ", "odd", "0.5", "params", "magnitude", "\0", "\ud800", "x" * 10**4, "../..",
    "*"]),
    "text of a kind": lambda r: Text("magnitude"), "bytes": lambda r: b"magnitude", "bytearray": lambda r: bytearray(3),
    "path": lambda r: Path(r.choice([".", "/", "/dev/null", "nowhere/x", "a" * 300])), "list": lambda r: [],
    "list of integers": lambda r: [r.randint(-2, 9) for _ in range(3)], "list of None": lambda r: [None],
    "list of text": lambda r: ["odd", ""], "list of lists": lambda r: [[[]]], "tuple": lambda r: (),
    "set": lambda r: {1, "a"},
    "dict": lambda r: {}, "dict of integers": lambda r: {1: 2}, "dict of text": lambda r: {"odd": "odd"},
    "dict of floats": lambda r: {"odd": 0.5, "0.weight:0": float("nan")}, "nested": lambda r: {"a": [{"b": (1, None)}]},
    "class": lambda r: r.choice([int, dict, torch.nn.Linear, Exception]), "object": lambda r: object(),
    "function": lambda r: lambda *a, **k: None, "function that raises": lambda r: Raising()._no,
    "generator": lambda r: (i for i in range(3)), "spent iterator": lambda r: iter([]), "endless": lambda r: Endless(),
    "raising": lambda r: Raising(), "module": lambda r: torch.nn.Linear(2, 2),
    "empty module": lambda r: torch.nn.Module(),
    "meta module": lambda r: torch.nn.Linear(2, 2, device="meta"), "tensor": lambda r: torch.ones(2),
    "scalar tensor": lambda r: torch.tensor(0.3), "integer tensor": lambda r: torch.arange(3),
    "empty tensor": lambda r: torch.zeros(0, 4), "meta tensor": lambda r: torch.ones(2, 4, device="meta"),
    "NaN tensor": lambda r: torch.full((2, 4), float("nan")), "sparse tensor": lambda r: torch.eye(4).to_sparse(),
    "parameter": lambda r: torch.nn.Parameter(torch.ones(2)), "dtype": lambda r: torch.float16,
    "ellipsis": lambda r: ...,
    "device": lambda r: torch.device("meta"), "slice": lambda r: slice(1, 2), "module of Python": lambda r: os,
    "exception": lambda r: ValueError("x"), "type union": lambda r: int | None, "range": lambda r: range(3),
}  # fmt: skip
HEAVY = {"samples", "seeds", "steps"}  # large numbers here are a great deal of work, and no mistake


def drawn(seed: int, number: int) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The call of a number, which arguments are odd and how, and their values."""
    r = source(seed, number)
    name = r.choice(sorted(CALLS))
    free = arguments_of(name)
    odd = r.sample(free, min(len(free), r.choice([1, 1, 1, 2])))
    kinds = {argument: r.choice(sorted(VALUES)) for argument in odd}
    return name, kinds, {argument: VALUES[kind](r) for argument, kind in kinds.items()}


def campaign(numbers: Iterable[int], seed: int) -> Iterator[Outcome]:
    """An odd call a number, in a folder of its own."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def prepare() -> None:
        os.chdir(root)
        if not (root / "saved").exists():
            fxprune.save(SMALL, "saved")
        warnings.simplefilter("ignore")

    return sandbox.trials(list(numbers), lambda number: _tried(number, seed), prepare)


def _tried(number: int, seed: int) -> Outcome:
    name, kinds, values = drawn(seed, number)
    outcome, text = _outcome(name, values)
    return Outcome(number, name, outcome, "" if outcome == RIGHT else f"{name}({kinds}): {text[:600]}")


def _outcome(name: str, values: dict[str, Any]) -> tuple[str, str]:
    try:
        called(name, values)
    except FxPruneError as e:
        text = str(e)
        return (REFUSED if any(names_it(argument, text) for argument in values) else "nameless"), text
    except BaseException as e:  # noqa: BLE001 - that is what is looked for
        own = str(e) == NOT_THIS and "criterion" in values  # an error of the caller's own criterion comes back as it is
        return RIGHT if own else "raw", f"{type(e).__name__}: {e!s:.300}"
    return RIGHT, ""
