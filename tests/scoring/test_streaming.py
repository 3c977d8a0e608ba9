"""Batches are streamed: one in memory at a time, the same at every pass, endless data cut, odd ones refused."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fxprune
from fxprune.scoring import streaming
from fxprune.scoring.streaming import Batches, as_batches

ROWS = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) + 0.1 * torch.randn(2)).square().mean()


def rows(found: list[tuple[Tensor]]) -> Tensor:
    return torch.stack([row for (row,) in found])


def loader(generator: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(ROWS), 4, shuffle=True, collate_fn=rows, generator=generator)


class Watched:
    """How many batches are alive, and how often they are read."""

    def __init__(self, data: Any) -> None:
        self.data, self.alive, self.most, self.passes = data, 0, 0, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        for batch in self.data:
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(batch, self._gone)
            yield batch
            del batch

    def _gone(self) -> None:
        self.alive -= 1


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return (torch.randn(4, 8) for _ in itertools.count())


def pruned(criterion: str, data: Any, **options: Any) -> Any:
    given = {"example_inputs": ROWS[:1], "data": data, "loss": loss, "progress": False, **options}
    return fxprune.prune(net(), criterion, 0.4, **given)


@pytest.mark.parametrize("criterion", ["taylor", "gradflow", "wanda", "obs", "diff_pruning"])
def test_a_loader_is_not_held_in_memory_and_gives_what_a_list_gives(criterion: str) -> None:
    watched = Watched(loader())
    got = pruned(criterion, watched)
    net()  # seeds what shuffles, as in `pruned`
    want = pruned(criterion, list(loader()))
    assert watched.most <= 2
    assert watched.passes >= (2 if criterion in ("gradflow", "diff_pruning") else 1)
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), want.parameters(), strict=True))
    assert fxprune.report(got).plan == fxprune.report(want).plan


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(7)])
def test_passes_are_the_same_and_draw_nothing_outside(generator: torch.Generator | None) -> None:
    batches = as_batches(loader(generator))
    state = torch.get_rng_state()
    first = [b.clone() for b in batches]
    torch.rand(5)
    torch.set_rng_state(state)
    again = []
    for b in batches:
        again.append(b.clone())
        torch.rand(1)  # what the loss draws does not reach the data
    torch.set_rng_state(state)
    assert len(first) == len(again) == 24
    assert all(map(torch.equal, first, again))
    assert not torch.equal(torch.cat(first), ROWS)


@pytest.mark.parametrize("make", [lambda: DataLoader(Endless(), None), lambda: iter(Endless()), Endless])
def test_endless_data_are_cut_in_words(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MOST", 6)
    with pytest.warns(UserWarning, match=r"tells no length and may be endless: its first 6 batches .* max_batches="):
        pruned("taylor", make())


def test_another_number_of_batches(recwarn: pytest.WarningsRecorder) -> None:
    seen = []

    def counted(model: nn.Module, batch: Tensor) -> Tensor:
        seen.append(1)
        return loss(model, batch)

    for data, most, want in ((Endless(), 3, 3), (list(loader()), 5, 5), (loader(), 2, 2), (iter(loader()), 4, 4)):
        seen.clear()
        pruned("taylor", data, loss=counted, max_batches=most)
        assert len(seen) == want
    assert not [w for w in recwarn if "batches" in str(w.message)]
    with pytest.raises(fxprune.InputsError, match=r"max_batches=0 must be a whole number, at least 1"):
        pruned("taylor", loader(), max_batches=0)
    with pytest.raises(fxprune.InputsError, match=r"max_batches=2 counts the batches of data=, and none are given"):
        pruned("magnitude", None, max_batches=2)


class Own:
    """Other batches each time, from a generator that nobody knows."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.randn(4, 8, generator=self.own) for _ in range(3)])


class Fewer(Own):
    """A batch less each time."""

    left = 4

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        return iter(ROWS.split(8)[: self.left])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Own(), r"batch 0 of data is another one each time it is read: .* pass data=list\(\.\.\.\)"),
        (Fewer(), "data gave 3 batches and now gives 2"),
        ([ROWS[:4], ROWS[:0]], "batch 1 of data is empty; leave it out"),
        (DataLoader([ROWS[:0]], 1), "batch 0 of data is empty"),
        (DataLoader([], 1), "data holds no batch"),
        (iter([]), "data holds no batch"),
    ],
)
def test_odd_data_are_refused(data: Any, message: str) -> None:
    with pytest.raises(fxprune.InputsError, match=message):
        pruned("gradflow", data)


def test_lists_stay_what_they_are() -> None:
    given = [ROWS[:4]]
    assert as_batches(given) is given
    assert as_batches(None) is None
    assert isinstance(as_batches(loader()), Batches)
    assert as_batches(ROWS) is ROWS  # one tensor is refused by name later
