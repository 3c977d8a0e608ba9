"""A tensor without the positions that go, cut a block of rows at a time."""

from __future__ import annotations

import pytest
import torch

from fxprune.rewriting.slicing import _cut


@pytest.mark.parametrize("shape", [(300, 700), (300, 500, 3), (300, 100, 3, 3)])
def test_rows_and_columns_are_cut_in_blocks(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    rows, columns = torch.arange(0, shape[0], 2), torch.arange(1, shape[1], 3)
    positions = [rows, columns, *[None] * (len(shape) - 2)]
    assert torch.equal(_cut(tensor, positions), tensor[rows][:, columns])
    swapped = tensor.transpose(0, 1)
    assert torch.equal(_cut(swapped, [columns, rows, *positions[2:]]), swapped[columns][:, rows])
