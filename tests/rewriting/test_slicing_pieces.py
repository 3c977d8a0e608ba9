"""A tensor without the positions that go, of any type and along any axes, in memory and in a file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from fxprune.errors import SaveError
from fxprune.rewriting import slicing
from fxprune.rewriting.slicing import _cut
from fxprune.scoring.mapped import Pages, Scratch, cut_to

TYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.complex128)


def expected(tensor: torch.Tensor, positions: list[torch.Tensor | None]) -> torch.Tensor:
    for d, stay in enumerate(positions):
        tensor = tensor if stay is None else tensor.index_select(d, stay)
    return tensor


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("at_once", [1, 1 << 10, 1 << 20])
def test_all_axes(dtype: torch.dtype, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicing, "AT_ONCE", at_once)
    tensor = torch.randint(0, 2, (7, 6, 5)).to(dtype)
    runs = (None, torch.tensor([1, 2, 3]), torch.tensor([0, 2, 4]), torch.arange(0))
    with Pages() as pages:
        scratch = Scratch(tmp_path, pages)
        for positions in itertools.product(runs, repeat=3):
            want = expected(tensor, list(positions))
            assert torch.equal(_cut(tensor, list(positions)), want)
            with cut_to(scratch):
                assert torch.equal(_cut(tensor, list(positions)), want)


def test_what_has_no_axes_or_lies_otherwise(tmp_path: Path) -> None:
    number = torch.tensor(3.0)
    pictures = torch.randn(4, 6, 3, 3).contiguous(memory_format=torch.channels_last)
    stay: list[torch.Tensor | None] = [torch.tensor([0, 3]), torch.tensor([1, 2, 5]), None, None]
    assert torch.equal(_cut(number, []), number)
    assert _cut(pictures, stay).is_contiguous(memory_format=torch.channels_last)
    with Pages() as pages, cut_to(Scratch(tmp_path, pages)):
        assert torch.equal(_cut(number, []), number)
        assert torch.equal(_cut(pictures, stay), expected(pictures, stay))
        weight = torch.nn.Parameter(torch.randn(4, 6), requires_grad=False)
        kept = _cut(weight, [torch.tensor([1]), None])
        assert isinstance(kept, torch.nn.Parameter)
        assert not kept.requires_grad
        with torch.no_grad():
            kept.mul_(2)  # a temperature is folded into what has been cut
        assert torch.equal(kept, 2 * weight[1:2])


def test_a_disk_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Pages() as pages, cut_to(Scratch(tmp_path, pages)):
        monkeypatch.setattr("fxprune.scoring.mapped.os.pwrite", full)
        with pytest.raises(SaveError, match=r"no room for another 96 bytes: .*No space left on device"):
            _cut(torch.randn(4, 6), [None, None])
