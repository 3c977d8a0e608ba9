"""A saliency that is computed from one tensor, element by element: in blocks when it is summed, never whole.

A copy of every weight would double the memory of a large model, and writing it takes longer than summing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxprune.graph.modules import one_thread
from fxprune.graph.sharding import full

BLOCK = 1 << 17  # elements: half a megabyte of float32, which stays in a core's cache


class Part(Protocol):
    """What is read in parts: a tensor, or one that lies elsewhere (`fxprune.scoring.storage.Rows`)."""

    @property
    def shape(self) -> torch.Size: ...
    def __getitem__(self, rows: slice) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Elementwise:
    """`of(tensor, *beside)`, where `of` acts on each element by itself; a criterion may return it in place of a tensor.

    Args:
        tensor: on whose device the values are.
        of: gets a part of the tensor and the same parts of those in `beside`, of floating type and float32 at least.
        beside: tensors of the same shape, such as gradients.

    >>> import torch
    >>> Elementwise(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.square).fold([1])
    tensor([ 5., 25.])
    """

    tensor: Tensor
    of: Callable[..., Tensor]
    beside: tuple[Part, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.tensor.shape

    def then(self, further: Callable[[Tensor], Tensor]) -> Elementwise:
        """The values, put through one more function of each element."""
        return Elementwise(self.tensor, lambda *blocks: further(self.of(*blocks)), self.beside)

    def fold(self, dims: Sequence[int], largest: bool = False) -> Tensor:
        """Σ over some axes, or the largest value along them."""
        return self.folds([dims], largest)[0]

    def folds(self, many: Sequence[Sequence[int]], largest: bool = False) -> list[Tensor]:
        """`fold` for several sets of axes, in one pass over the elements."""
        data = full(self.tensor.detach())
        if not data.dim():
            value = self.of(wide(data), *(wide(b if isinstance(b, Tensor) else b[:]) for b in self.beside))
            return [value for _ in many]
        parts: list[list[Tensor]] = [[] for _ in many]
        with one_thread():  # a block is over before a second thread has begun
            for rows in _rows(data):
                block = self.of(wide(data[rows]), *(wide(b[rows].detach()) for b in self.beside))
                for found, dims in zip(parts, many, strict=True):
                    found.append(_folded(block, dims, largest) if dims else block)
        return [_joined(found, 0 in dims, largest) for found, dims in zip(parts, many, strict=True)]


def _rows(data: Tensor) -> list[slice]:
    """All rows of a tensor (positions of axis 0), a block at a time; a GPU takes them at once."""
    size = max(1, BLOCK * len(data) // max(1, data.numel())) if data.device.type == "cpu" else max(1, len(data))
    return [slice(start, start + size) for start in range(0, max(1, len(data)), size)]


def _folded(block: Tensor, dims: Sequence[int], largest: bool) -> Tensor:
    return block.amax(tuple(dims)) if largest else block.sum(tuple(dims))


def _joined(parts: list[Tensor], over_rows: bool, largest: bool) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if not over_rows:
        return torch.cat(parts)
    return torch.stack(parts).amax(0) if largest else torch.stack(parts).sum(0)


def wide(block: Tensor) -> Tensor:
    """A tensor in float32 at least."""
    return block if block.dtype in (torch.float32, torch.float64) else block.float()
