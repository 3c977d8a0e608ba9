"""Numbers that no trace has read are brought along before the proof, which is then made once; or taken back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import RewriteError, VerifyError
from fxprune.graph.provenance import Attr
from fxprune.pruning import attempt
from fxprune.rewriting.unread import unread
from fxprune.verification import check_dense


class Wide(nn.Module):
    """Tells a width that its forward does not read, and a number that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.hidden, self.times = nn.Linear(8, 24), nn.Linear(24, 4), 24, 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        for _ in range(self.times):
            x = (x + 1).sin()
        return x


def pruned(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return fxprune.prune(Wide(), "magnitude", 0.4, example_inputs=torch.randn(2, 8), progress=False, **options)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counting(*args: Any) -> Any:
        calls.append(1)
        return check_dense(*args)

    monkeypatch.setattr(attempt, "check_dense", counting)
    return calls


def wrong(monkeypatch: pytest.MonkeyPatch, times: Any) -> None:
    def misread(*args: Any) -> Any:
        follow, stale = unread(*args)
        return {**follow, Attr("", "times", 2): times}, stale

    monkeypatch.setattr(attempt, "unread", misread)


def test_one_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    small: Any = pruned()
    assert small.hidden == small.a.out_features < 24
    assert len(calls) == 1


@pytest.mark.parametrize("times", [3, "many"])  # it computes something else, and it does not run
def test_a_number_that_means_something_else_is_taken_back(times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch, times)
    small: Any = pruned()
    assert (small.times, small.hidden) == (2, 24)
    report = fxprune.report(small)
    assert [(s.name, s.now) for s in report.stale] == [("hidden", (small.a.out_features,)), ("times", (times,))]
    assert report.checks[0].ok
    assert {c.name for c in report.changes} == {"in_features", "out_features"}


def test_a_model_that_fails_without_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Any:
        raise VerifyError("no proof")

    monkeypatch.setattr(attempt, "check_dense", never)
    monkeypatch.setattr("fxprune.pruning.realize.check_dense", never)
    with pytest.raises(RewriteError, match="no proof"):
        pruned(strict=True)
