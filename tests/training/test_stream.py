"""Batches without end: epochs, shares, and going on at the very same point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, RandomSampler

import fxprune
from fxprune.training.stream import Stream, _Share

ROWS = torch.arange(12.0)


def shuffled(seed: int) -> DataLoader[Any]:
    """A loader that owns its random numbers."""
    return DataLoader(ROWS, 3, shuffle=True, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def sampled(seed: int) -> DataLoader[Any]:
    """Its sampler owns them."""
    sampler = RandomSampler(range(12), generator=torch.Generator().manual_seed(seed))
    return DataLoader(ROWS, 3, sampler=sampler)  # type: ignore[arg-type]


class Noisy:
    """Draws from torch's own generator."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.rand(2) for _ in range(4))


def taken(stream: Stream, number: int) -> list[list[float]]:
    return [batch.tolist() for batch in itertools.islice(stream, number)]


@pytest.mark.parametrize("make", [shuffled, sampled])
@pytest.mark.parametrize("number", [2, 4, 6])
def test_a_stream_goes_on_where_its_loaders_generator_was(make: Any, number: int) -> None:
    """In the first epoch, at its end, and in the second; the new loader's generator stands elsewhere."""
    accelerator = Accelerator(cpu=True)
    first = Stream(make(5), accelerator)
    taken(first, number)
    state, random = first.state_dict(), torch.get_rng_state()
    want = taken(first, 7)
    second = Stream(make(99), accelerator)
    second.load_state_dict(state)
    torch.set_rng_state(random)
    assert taken(second, 7) == want
    assert second.state_dict()["epoch"] == first.state_dict()["epoch"]


def test_a_stream_goes_on_where_torchs_generator_was() -> None:
    accelerator = Accelerator(cpu=True)
    first = Stream(Noisy(), accelerator)
    taken(first, 6)
    state = first.state_dict()
    random = torch.get_rng_state()
    want = taken(first, 5)
    torch.manual_seed(123)
    second = Stream(Noisy(), accelerator)
    second.load_state_dict(state)
    torch.set_rng_state(random)
    assert taken(second, 5) == want


def test_an_epoch_holds_every_batch_once_and_is_named() -> None:
    stream = Stream(shuffled(0), Accelerator(cpu=True))
    for epoch in (1, 2):
        assert sorted(itertools.chain.from_iterable(taken(stream, 4))) == ROWS.tolist()
        assert stream.where == f"batch 4 of epoch {epoch}"


def test_data_that_has_grown_shorter_is_told() -> None:
    accelerator = Accelerator(cpu=True)
    stream = Stream([ROWS] * 5, accelerator)
    taken(stream, 4)
    shorter = Stream([ROWS] * 3, accelerator)
    shorter.load_state_dict(stream.state_dict())
    with pytest.raises(fxprune.InputsError, match="had 4 batches in this epoch and now has 3"):
        next(shorter)


def test_an_empty_batch_is_named() -> None:
    stream = Stream([ROWS, torch.empty(0)], Accelerator(cpu=True))
    next(stream)
    with pytest.raises(fxprune.InputsError, match="an empty batch: batch 2 of epoch 1"):
        next(stream)


def test_processes_share_a_list_without_overlap() -> None:
    assert [list(_Share(range(7), k, 3)) for k in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
