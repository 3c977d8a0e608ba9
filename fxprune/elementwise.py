"""A saliency that is computed from one tensor, element by element: in blocks when it is summed, never whole.

A copy of every weight would double the memory of a large model, and writing it takes longer than summing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 17  # elements: half a megabyte of float32, which stays in a core's cache


@dataclass(frozen=True, eq=False)
class Elementwise:
    """`of(tensor)`, where `of` acts on each element by itself; a criterion may return it in place of a tensor.

    >>> import torch
    >>> Elementwise(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.square).sum([1])
    tensor([ 5., 25.], dtype=torch.float64)
    """

    tensor: Tensor
    of: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.tensor.shape

    def blocks(self) -> Iterator[Tensor]:
        """The values, a block of rows (positions of axis 0) at a time, of floating type and float32 at least."""
        data = self.tensor.detach()
        rows = max(1, BLOCK * len(data) // max(1, data.numel())) if data.dim() else 1
        for block in data.split(rows) if data.dim() else (data,):
            yield self.of(block if block.dtype in (torch.float32, torch.float64) else block.float())

    def sum(self, dims: Sequence[int]) -> Tensor:
        """Σ over some axes, in float64."""
        dims = list(dims)
        if not dims or not self.tensor.dim():
            return (
                torch.cat([b.double() for b in self.blocks()]) if self.tensor.dim() else self.of(self.tensor).double()
            )
        parts = (block.sum(dims).double() for block in self.blocks())
        return torch.stack(list(parts)).sum(0) if 0 in dims else torch.cat(list(parts))
