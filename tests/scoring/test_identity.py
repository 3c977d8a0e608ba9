"""Fingerprints: another one where the thing is another, the same one where it is the same."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune.scoring.identity import of_data, of_model, told

ROWS = torch.arange(96.0).reshape(24, 4)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64))


def weighted(weight: Any) -> Callable[[nn.Module, Tensor], Any]:
    return lambda model, batch: weight * model(batch).mean()


class Loss:
    """With a counter of its own calls."""

    def __init__(self, weight: float) -> None:
        self.weight, self.calls = weight, 0

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.calls += 1
        return self.weight * model(batch).mean()


def helper(x: Tensor) -> Tensor:
    return x.mean()


def by_helper(model: nn.Module, batch: Tensor) -> Tensor:
    return helper(model(batch))


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "code": (lambda m, b: m(b).mean(), lambda m, b: m(b).sum()),
    "a number in the code": (lambda m, b: 2 * m(b), lambda m, b: 3 * m(b)),
    "a closure": (weighted(1.0), weighted(2.0)),
    "a tensor in a closure": (weighted(torch.ones(3)), weighted(torch.zeros(3))),
    "a list in a closure": (weighted([1.0]), weighted([2.0])),
    "a model in a closure": (weighted(net(0)), weighted(net(1))),
    "a partial": (functools.partial(by_helper, batch=1), functools.partial(by_helper, batch=2)),
    "an attribute": (Loss(1.0), Loss(2.0)),
    "a module's option": (nn.MSELoss(), nn.MSELoss(reduction="sum")),
    "a function in a tuple": (("a", lambda n, m: True), ("a", lambda n, m: False)),
    "the ninth digit": (0.1234567891, 0.1234567892),
    "a type": (nn.Linear, nn.Conv2d),
    "a shape": (torch.ones(2, 3), torch.ones(3, 2)),
    "a number type": (torch.ones(3), torch.ones(3).double()),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_is_seen(what: str) -> None:
    a, b = DIFFERENT[what]
    assert told(a) != told(b)
    assert told(a) == told(a)


def test_a_helper_of_the_same_module_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = told(by_helper)
    monkeypatch.setitem(by_helper.__globals__, "helper", lambda x: x.sum())
    assert told(by_helper) != before


def test_what_code_rebinds_itself_is_its_state() -> None:
    counted = Loss(1.0)
    before = told(counted)
    counted(nn.Identity(), torch.ones(2))
    assert counted.calls == 1
    assert told(counted) == before

    def counting() -> Callable[[nn.Module, Tensor], Any]:
        n = 0

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            nonlocal n
            n += 1
            return model(batch).mean()

        return loss

    loss = counting()
    before = told(loss)
    loss(nn.Identity(), torch.ones(2))
    assert told(loss) == before


@pytest.mark.parametrize("index", [0, 37, 255])
def test_one_changed_number_of_a_model_is_seen(index: int) -> None:
    model = net()
    before = of_model(model)
    assert of_model(net()) == before
    with torch.no_grad():
        model[0].weight.view(-1)[index] += 1e-6  # type: ignore[index, operator, union-attr]
    assert of_model(model) != before


def test_buffers_and_exchanged_rows_are_seen() -> None:
    model = net()
    before = of_model(model)
    model[1].running_mean.add_(1)  # type: ignore[index, operator, union-attr]
    other = net()
    with torch.no_grad():
        other[0].weight.copy_(other[0].weight.flip(0))  # type: ignore[index, operator, union-attr]
    assert len({before, of_model(model), of_model(other)}) == 3


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.bfloat16, torch.float64, torch.complex64])
def test_tensors_of_every_type(dtype: torch.dtype) -> None:
    ones, other = torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)
    other[2] = 0
    assert told(ones) != told(other)
    assert told(ones) == told(ones.repeat(2).reshape(2, 5).t()[:, 0])  # another memory layout
    assert told(torch.ones((), dtype=dtype)) != told(torch.ones(1, dtype=dtype))


class Drawn:
    """Fresh random numbers at every iteration, from torch's own generator."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.randn(2) for _ in range(3)])


class Restless:
    """Numbers that never come again."""

    count = 0

    def __iter__(self) -> Iterator[Tensor]:
        Restless.count += 1
        return iter([torch.full((2,), float(Restless.count))])


def test_data_are_known_by_their_items() -> None:
    def loader(rows: Tensor, size: int = 8, shuffle: bool = True) -> str:
        return of_data(DataLoader(TensorDataset(rows), size, shuffle))

    assert loader(ROWS) == loader(ROWS)
    assert len({loader(ROWS), loader(ROWS + 1), loader(ROWS[:20]), loader(ROWS, 4), loader(ROWS, 8, False)}) == 5
    assert of_data([ROWS]) != of_data([ROWS + 1])
    assert of_data(Drawn()) == of_data(Drawn())
    assert of_data(Restless()) == of_data(Restless())  # by shape
    assert of_data(iter([ROWS])) == "list_iterator, read once"
    assert of_data(None) == "none"


def test_looking_at_data_draws_nothing_outside() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    of_data(Drawn())
    assert torch.equal(torch.rand(3), want)


def test_the_next_process_finds_the_same() -> None:
    code = "import test_identity as t; print(t.told(t.by_helper), t.told(t.Loss(1.0)), t.of_model(t.net()))"
    folder = Path(__file__).parent
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert made == f"{told(by_helper)} {told(Loss(1.0))} {of_model(net())}"
