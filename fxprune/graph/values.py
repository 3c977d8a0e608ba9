"""What a model's Python reads from the values of tensors, for models that `torch.export` alone cannot capture.

Export runs on tensors without values, so it stops at `mask.sum().item()`, at `x[mask]`, at `if valid.any():`.  Where
such values come from the example inputs (and not from channels, which pruning changes), a run on them tells:
first the model runs as it is and what is read is noted; then it is exported, and reads the notes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.errors import TraceError
from fxprune.graph.packed import PACK, item, marked

_PYTHON = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}
_SIZED = {"nonzero", "argwhere", "bincount", "unique", "unique_consecutive"}  # their sizes depend on values
_INDEXED = {"__getitem__", "__setitem__"}
_MADE = {"zeros", "ones", "empty", "full", "rand", "randn", "arange"}  # from sizes alone
_SHAPED = {"view", "reshape", "expand", "repeat", "tile", "pad", "narrow", "split", "unflatten", "interpolate"}
_SHAPED |= {"new_zeros", "new_ones", "new_empty", "new_full"}


@dataclass
class Values:
    """Notes of what was read, in order, each with what read it; `take` gives them out again."""

    notes: list[tuple[str, Any]] = field(default_factory=list)
    given: int = 0

    def take(self, name: str) -> Any:
        """The next note.

        Raises:
            TraceError: where another call made it: the model takes another path while it is exported.
        """
        self._itemise(name)
        if self.given == len(self.notes) or self.notes[self.given][0] != name:
            raise TraceError(f"{name} reads a value that the run on the example inputs did not read")
        self.given += 1
        return pytree.tree_map_only(torch.Tensor, torch.clone, self.notes[self.given - 1][1])

    def _itemise(self, name: str) -> None:
        """Tensors without values make a list item by item: a list that was noted is given out so."""
        if name == "item" and self.given < len(self.notes) and self.notes[self.given][0] == "tolist":
            items = pytree.tree_leaves(self.notes[self.given][1])
            self.notes[self.given : self.given + 1] = [("item", v) for v in items]

    def answer(self, name: str, args: tuple[Any, ...]) -> tuple[bool, Any]:
        """Whether a call is answered from the notes, and its answer.

        Masks in `args` become positions, sizes and paddings that are tensors numbers.
        """
        if name in _PYTHON or name in _SIZED:
            return True, self.take(name)
        if first := _sizes(name, args):
            numbers = iter(self.take(name))
            sizes = pytree.tree_map(lambda x: next(numbers) if _is_number(x) else x, args[first - 1 :])
            return False, (*args[: first - 1], *sizes)
        return False, (args[0], self.take(name), *args[2:]) if _by_mask(name, args) else args


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    index = args[1] if name in _INDEXED else ()
    return any(isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in _items(index))


def _is_number(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dim() == 0 and not (x.is_floating_point() or x.dtype is torch.bool)


def _sizes(name: str, args: tuple[Any, ...]) -> int:
    """The number of the first argument that may be a size, where one of them is a tensor of one integer; else 0."""
    first = 1 if name in _MADE else 2 if name in _SHAPED or name.startswith("upsample_") else 0
    return first if first and any(map(_is_number, pytree.tree_leaves(args[first - 1 :]))) else 0


def _items(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _positions(index: Any) -> tuple[Any, ...]:
    """An index with the positions of each mask in place of the mask."""
    out: list[Any] = []
    for i in _items(index):
        mask = isinstance(i, torch.Tensor) and i.dtype is torch.bool
        out += i.nonzero(as_tuple=True) if mask else [i]
    return tuple(out)


class Noting(TorchFunctionMode):
    """Within, what Python reads from tensors is noted."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if (size := item(name, args)) is not None:
            return size
        out = func(*args, **(kwargs or {}))
        if name == PACK:
            self.values.notes.append((name, out[1].tolist()))
            marked(out[1], self.values.notes[-1][1])
        elif name in _PYTHON or name in _SIZED:
            self.values.notes.append((name, pytree.tree_map_only(torch.Tensor, torch.clone, out)))
        elif first := _sizes(name, args):
            numbers = filter(_is_number, pytree.tree_leaves(args[first - 1 :]))
            self.values.notes.append((name, list(map(int, numbers))))
        elif _by_mask(name, args):
            self.values.notes.append((name, _positions(args[1])))
        return out
