"""How outputs are compared: shapes, finiteness, and a tolerance for each floating type."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fxprune
from fxprune.masking.comparison import overflow, relative_error, silent, tolerance
from fxprune.verification import Check, check_dense

A = torch.tensor([1.0, -4.0, 2.0])
INF = math.inf


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        (A, A, 0.0),
        (A + torch.tensor([0.0, 0.0, 0.5]), A, 0.125),
        (A.view(1, 3), A, INF),  # broadcasts, and is no equal
        (A[:2], A, INF),
        (A[:1], A, INF),
        (A.view(3, 1), A.view(1, 3), INF),
        (None, A, INF),
        (A, None, 0.0),  # no tensor was there to compare
        (A.int(), A.int() + 1, 0.0),  # integers are not compared
        (A * 1j, A * 2j, 0.5),
        (torch.empty(0), torch.empty(0), 0.0),
        (torch.tensor([1.0, -INF]), torch.tensor([1.0, -INF]), 0.0),
        (torch.tensor([-INF, -INF]), torch.tensor([-INF, -INF]), 0.0),
        (torch.tensor([1.0, -INF]), torch.tensor([1.0, INF]), INF),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, -INF]), INF),
        (torch.tensor([math.nan]), torch.tensor([math.nan]), INF),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.full((2,), 1e-9), torch.zeros(2), 1e-3),  # beside nothing, a millionth is one
    ],
)
def test_relative_errors(got: object, want: object, error: float) -> None:
    assert relative_error([got], [want]) == pytest.approx(error)


def test_the_worst_of_all_outputs_counts() -> None:
    assert relative_error([A, A + 1, A], [A, A, A]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="zip"):
        relative_error([A], [A, A])


def test_nothing_can_be_proved_of_what_is_not_finite() -> None:
    assert not overflow([A, torch.tensor([1.0, -INF]), torch.tensor([1, 2]), None])
    assert overflow([A, torch.tensor([1.0, INF])])
    assert overflow([torch.tensor([math.nan])])
    assert overflow([torch.tensor([-INF, -INF])])
    assert not overflow([])


def test_silence_is_counted() -> None:
    assert silent([A, torch.zeros(2), torch.zeros(3), torch.tensor([0]), torch.empty(0), None]) == (3, 2)


@pytest.mark.parametrize(
    ("types", "limit"),
    [
        ([torch.float32], 1e-4),
        ([torch.float64], 1e-8),
        ([torch.bfloat16], 6e-2),
        ([torch.float16], 1e-2),
        ([torch.float64, torch.float32], 1e-4),
        ([torch.float32, torch.bfloat16], 6e-2),
        ([], 1e-4),
    ],
)
def test_the_coarsest_type_sets_the_tolerance(types: list[torch.dtype], limit: float) -> None:
    assert tolerance(nn.ModuleList(nn.Linear(1, 1, dtype=t) for t in types)) == limit


def test_autocast_sets_the_tolerance_too() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = self.a(x)
            return self.b(x.float())  # type: ignore[no-any-return]

    net = Cast()
    assert tolerance(net, fxprune.trace(net, torch.randn(2, 4)).traced) == 6e-2
    assert tolerance(net) == 1e-4


def test_a_check_is_ok_up_to_its_tolerance() -> None:
    assert Check("p", 1e-4, 1e-4).ok
    assert not Check("p", 1.1e-4, 1e-4).ok
    assert str(Check("p", 1e-3, 1e-4)) == "p: relative error 1.0e-03 (over 1e-04)"


class Insists(nn.Module):
    """Runs in float32 only, so that its error cannot be looked at in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return self.b(self.a(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3])
def test_without_float64_an_error_over_the_tolerance_is_caught_all_the_same(size: float) -> None:
    net, x = Insists(), torch.randn(4, 8)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    graph, plan = fxprune.trace(net, x), fxprune.report(small).plan
    assert check_dense(net, small, graph, plan).ok
    with torch.no_grad():
        small.b.weight.mul_(1 + size)
        small.b.bias.mul_(1 + size)
    found = check_dense(net, small, graph, plan)
    assert found.error == pytest.approx(size, rel=0.05)
    assert not found.ok


@pytest.mark.parametrize("size", [1e-5, 1e-7])
def test_in_float64_much_smaller_errors_are_caught(size: float) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)).double(), torch.randn(4, 8).double()
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    graph, plan = fxprune.trace(net, x), fxprune.report(small).plan
    with torch.no_grad():
        small[2].weight.mul_(1 + size)
    assert not check_dense(net, small, graph, plan).ok
