"""What is done a block at a time is what would have been done at once."""

from __future__ import annotations

import itertools

import pytest
import torch

from fxprune.scoring.elementwise import BLOCK, Elementwise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_blocks_sum_to_the_whole(dtype: torch.dtype) -> None:
    tensor = torch.randn(150, 300, 2, 2, dtype=dtype)
    assert tensor.numel() > BLOCK
    given = Elementwise(tensor, torch.square)
    whole = tensor.to(torch.promote_types(dtype, torch.float32)).square().double()
    for n in range(5):
        for dims in itertools.combinations(range(4), n):
            expected = whole.sum(dims) if dims else whole
            torch.testing.assert_close(given.fold(dims).double(), expected, rtol=1e-4, atol=1e-4)
            largest = whole.amax(dims) if dims else whole
            torch.testing.assert_close(given.fold(dims, largest=True).double(), largest, rtol=1e-6, atol=0)


def test_a_scalar_has_a_sum() -> None:
    assert float(Elementwise(torch.tensor(3.0), torch.square).fold([])) == 9


def test_blocks_are_taken_by_one_thread_and_the_others_come_back() -> None:
    before, seen = torch.get_num_threads(), []

    def of(block: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        if len(seen) == 3:
            raise RuntimeError("a criterion that fails")
        return block

    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError, match="fails"):
            Elementwise(torch.ones(8, BLOCK), of).fold([0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1]
