"""Families of sizes: nested, on budget, each proven; with norms over concatenations, too."""

from __future__ import annotations

from typing import Any

import clockwork
import pytest
import torch
from torch import nn

import fxprune

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GIVEN: dict[str, Any] = {"criterion": "magnitude", "example_inputs": X, "progress": False}
RATIOS = (0.2, 0.4, 0.6)


class Normed(nn.Module):
    """A group norm over a concatenation, and one over a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32)
        self.b, self.m = nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 96)
        self.c, self.d = nn.Conv2d(96, 40, 3, padding=1), nn.Conv2d(40, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.n(self.a(x)).relu()
        return self.d(self.c(self.m(torch.cat([h, self.b(h).relu()], 1))).relu())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Normed().eval()


@pytest.fixture(scope="module")
def made(net: nn.Module) -> fxprune.Family:
    return fxprune.family(net, [0.6, 0.2, 0.4], **GIVEN)


def nested(made: fxprune.Family) -> bool:
    pairs = zip(made.plans, made.plans[1:], strict=False)
    return all(set(gone) <= set(more.removed.get(g, ())) for less, more in pairs for g, gone in less.removed.items())


def test_each_size_is_a_part_of_the_one_before(net: nn.Module, made: fxprune.Family) -> None:
    assert nested(made)
    assert [plan.ratio for plan in made.plans] == list(RATIOS)
    sizes = [sum(p.numel() for p in m.parameters()) for m in made]
    assert sizes == [plan.cost("params") for plan in made.plans]
    whole = sum(p.numel() for p in net.parameters())
    for size, ratio in zip(sizes, RATIOS, strict=True):
        assert 1 - size / whole == pytest.approx(ratio, abs=0.03)
        assert 1 - size / whole <= ratio + 1e-9
    largest, smallest = made[0].a.weight, made[-1].a.weight
    rows = {tuple(r.flatten().tolist()) for r in largest}
    assert {tuple(r.flatten().tolist()) for r in smallest} < rows


def test_each_size_is_proven_and_is_its_plans_model(net: nn.Module, made: fxprune.Family) -> None:
    for small, plan in zip(made, made.plans, strict=True):
        assert all(c.ok for c in fxprune.report(small).checks)
        again = fxprune.apply(net, plan, example_inputs=X)
        assert torch.equal(again(X), small(X))


@pytest.mark.parametrize("of", ["macs", "memory", "channels"])
def test_any_cost_is_met(net: nn.Module, of: str) -> None:
    made = fxprune.family(net, [0.25, 0.5], of=of, **GIVEN)
    assert nested(made)
    for plan, ratio in zip(made.plans, (0.25, 0.5), strict=True):
        assert plan.achieved == pytest.approx(ratio, abs=0.04)


def test_latency_is_met_by_the_clock(net: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    clockwork.install(monkeypatch)
    made = fxprune.family(net, [0.3, 0.6], of="latency", **GIVEN)
    assert nested(made)
    for plan, ratio in zip(made.plans, (0.3, 0.6), strict=True):
        before, after = plan.costs["latency"]
        assert 1 - after / before == pytest.approx(ratio, abs=0.03)


def test_exact_norms_stay_exact(net: nn.Module) -> None:
    made = fxprune.family(net, [0.2, 0.5], exact_norms=True, **GIVEN)
    assert nested(made)
    assert not any(plan.regrouped for plan in made.plans)


def test_what_cannot_be_is_refused(net: nn.Module) -> None:
    with pytest.raises(fxprune.BudgetError, match="pass shares of params to remove"):
        fxprune.family(net, [0.2, 1.5], **GIVEN)
    with pytest.raises(fxprune.BudgetError, match=r"cannot be removed .* at most"):
        fxprune.family(net, [0.2, 0.9], max_ratio=0.5, **GIVEN)
    with pytest.raises(fxprune.BudgetError, match="a family is for shape='free'"):
        fxprune.family(net, [0.2], limits=fxprune.Limits(shape="stock"), **GIVEN)
