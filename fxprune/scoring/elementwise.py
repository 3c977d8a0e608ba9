"""A saliency that is computed from one tensor, element by element: in blocks when it is summed, never whole.

A copy of every weight would double the memory of a large model, and writing it takes longer than summing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 17  # elements: half a megabyte of float32, which stays in a core's cache


@dataclass(frozen=True, eq=False)
class Elementwise:
    """`of(tensor)`, where `of` acts on each element by itself; a criterion may return it in place of a tensor.

    >>> import torch
    >>> Elementwise(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.square).fold([1])
    tensor([ 5., 25.])
    """

    tensor: Tensor
    of: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.tensor.shape

    def blocks(self) -> Iterator[Tensor]:
        """The values, a block of rows (positions of axis 0) at a time, of floating type and float32 at least.

        A GPU takes them at once.
        """
        data = self.tensor.detach()
        rows = max(1, BLOCK * len(data) // max(1, data.numel())) if data.dim() and data.device.type == "cpu" else 0
        for block in torch.split(data, rows) if rows else (data,):
            yield self.of(block if block.dtype in (torch.float32, torch.float64) else block.float())

    def fold(self, dims: list[int], largest: bool = False) -> Tensor:
        """Σ over some axes, or the largest value along them."""
        if not dims:
            parts = list(self.blocks())
        else:
            parts = [block.amax(dims) if largest else block.sum(dims) for block in self.blocks()]
        if len(parts) == 1:
            return parts[0]
        if 0 not in dims:
            return torch.cat(parts)
        return torch.stack(parts).amax(0) if largest else torch.stack(parts).sum(0)
