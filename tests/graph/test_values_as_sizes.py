"""Sizes and paddings that a forward gives as tensors of one integer, as ViLT does for the valid part of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune


class Valid(nn.Module):
    """A grid of positions, resized to the part of each image that a mask leaves, and padded to the whole."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.first, self.grid, self.last = nn.Conv2d(3, c, 1), nn.Parameter(torch.randn(1, c, 2, 2)), nn.Conv2d(c, 3, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x)
        high, wide = mask.sum(1)[:, 0], mask.sum(2)[:, 0]
        grids = [
            F.pad(
                F.interpolate(self.grid, size=(i, j), mode="bilinear", align_corners=True),
                (0, h.shape[3] - j, 0, h.shape[2] - i),
            )
            for i, j in zip(high, wide, strict=True)
        ]
        return self.last((h + torch.cat(grids)).relu())


def test_the_forward_is_captured_and_its_channels_go() -> None:
    mask = torch.ones(2, 6, 6, dtype=torch.long)
    mask[1, 4:] = mask[1, :, 5:] = 0
    small = fxprune.prune(Valid(), "magnitude", 0.5, example_inputs=(torch.randn(2, 3, 6, 6), mask), progress=False)
    told = fxprune.report(small)
    assert told.forward == "module"
    assert small.grid.shape[1] < 16
    assert all(c.ok for c in told.checks)
