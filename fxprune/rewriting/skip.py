"""What stands in the place of a module that was taken out: it answers with one of its inputs, or with zeros.

    answer      what the module gave
    Passed      the input of that number (positional) or name (keyword), as it is
    Zeros       zeros of the type and place of an input, sized by rules: n > 0 means n, −k means ⌈size / k⌉ of the
                input's axis of that index
    None        nothing
    tuple       several of these

Sizes are an attribute of the `Skip` (one row for all zeros), so that pruning once more can change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from fxprune.errors import InputsError

Key: TypeAlias = int | str


@dataclass(frozen=True)
class Passed:
    """The input of that position or name."""

    key: Key


@dataclass(frozen=True)
class Zeros:
    """Zeros like the input of that position or name, of `rank` sizes, from the row's index `first` on."""

    key: Key
    first: int
    rank: int


Answer: TypeAlias = "Passed | Zeros | tuple[Any, ...] | None"
_PLAIN = (bool, int, float, str, type(None))


class Skip(nn.Module):
    """Takes any arguments, computes nothing, holds no tensors.

    Args:
        answer: what it returns.
        sizes: see the module's docstring.
        attributes: plain attributes of the module that stood here, which others may read.

    >>> skip = Skip((Passed(0), Zeros(0, 0, 2)), (-1, 3))
    >>> [tuple(x.shape) for x in skip(torch.ones(2, 5))]
    [(2, 5), (2, 3)]
    """

    def __init__(
        self, answer: Answer, sizes: tuple[int, ...] = (), attributes: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.__dict__.update(attributes or {})
        self._answer = answer
        self.sizes = tuple(sizes)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises `InputsError` where an argument is missing that the module was called with before."""
        return self._made(self._answer, args, kwargs)

    def _made(self, answer: Answer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if answer is None:
            return None
        if isinstance(answer, tuple):
            return tuple(self._made(a, args, kwargs) for a in answer)
        x = argument(args, kwargs, answer.key)
        if x is None:
            raise InputsError(f"what was taken out here was called with argument {answer.key!r}; it is missing now")
        if isinstance(answer, Passed):
            return x
        sizes = self.sizes[answer.first : answer.first + answer.rank]
        if all(-2 < s < 0 for s in sizes) and len(sizes) == x.dim():
            return torch.zeros_like(x)
        return x.new_zeros([_size(s, x, d) for d, s in enumerate(sizes)])

    @property
    def answer(self) -> Answer:
        """What it returns."""
        return self._answer

    def extra_repr(self) -> str:
        return f"{self._answer!r}{f', sizes={self.sizes}' if self.sizes else ''}"


def _size(rule: int, x: torch.Tensor, d: int) -> int:
    if rule > 0:
        return rule
    return x.shape[d] if rule > -2 else -(x.shape[d] // rule)


def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Key) -> Any:
    """The argument of a position or name; None where it is missing."""
    if isinstance(key, str):
        return kwargs.get(key)
    return args[key] if key < len(args) else None


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The numbers and words that a module holds in public."""
    held = ((k, v) for k, v in vars(module).items() if not k.startswith("_") and k not in ("training", "sizes"))
    return {k: v for k, v in held if isinstance(v, _PLAIN)}


def put(model: nn.Module, path: str, skip: nn.Module) -> None:
    """Give the place of the module at `path`, under all its names, to another."""
    old = model.get_submodule(path)
    skip.train(old.training)
    for owner in list(model.modules()):
        for name, child in owner._modules.items():
            if child is old:
                owner._modules[name] = skip


# ---- as JSON data -------------------------------------------------------------------------------------------------


def to_data(answer: Answer) -> Any:
    """An answer as JSON data."""
    if isinstance(answer, tuple):
        return [to_data(a) for a in answer]
    if isinstance(answer, Passed):
        return {"passed": answer.key}
    return None if answer is None else {"zeros": answer.key, "first": answer.first, "rank": answer.rank}


def from_data(data: Any, sizes: int) -> Answer:
    """The answer that `to_data` wrote, whose zeros are sized by a row of that length.

    Raises:
        ValueError: where the data is anything else.
    """
    if data is None:
        return None
    if isinstance(data, list):
        return tuple(from_data(d, sizes) for d in data)
    if not isinstance(data, dict) or set(data) not in ({"passed"}, {"zeros", "first", "rank"}):
        raise ValueError(f"{data!r:.60} is no answer of a module that was taken out")
    if "passed" in data:
        return Passed(key_of(data["passed"]))
    first, rank = data["first"], data["rank"]
    if type(first) is not int or type(rank) is not int or not 0 <= first <= first + rank <= sizes:
        raise ValueError(f"sizes {first!r:.20} to {rank!r:.20} are not among {sizes}")
    return Zeros(key_of(data["zeros"]), first, rank)


def key_of(value: Any) -> Key:
    """An argument's position or name.

    Raises:
        ValueError: it is neither.
    """
    if type(value) is str or (type(value) is int and 0 <= value < 1000):
        return value
    raise ValueError(f"{value!r:.60} is no argument's position or name")
