"""A group norm is regrouped only where no set that leaves its groups their own members comes near the budget."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune

X = torch.randn(1, 3, 6, 6)


def net(channels: int, groups: int, norms: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(norms):
        layers += [nn.Conv2d(channels if i else 3, channels, 1), nn.GroupNorm(groups, channels), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 1))


def drawn(graph: fxprune.ChannelGraph, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.random(len(g)) for g in graph.groups}


@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (32, 4), (64, 32), (48, 6), (24, 1)])
def test_one_norm_stays_exact_wherever_a_balanced_set_is_near(channels: int, groups: int) -> None:
    graph = fxprune.trace(net(channels, groups), X)
    sets = {a * j for a, j in itertools.product(range(1, groups + 1), range(1, channels // groups + 1))}
    for seed, ratio in itertools.product(range(2), (0.25, 0.4, 0.5, 0.6, 0.75)):
        plan = fxprune.plan(graph, drawn(graph, seed), ratio, of="channels")
        if min(abs(ratio - (1 - n / channels)) for n in sets) < 0.005:
            assert not plan.regrouped
            assert plan.achieved == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize("seed", range(4))
def test_half_of_a_norm_of_eight_groups_is_exact(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1)
    )
    plan = fxprune.report(fxprune.prune(model, "magnitude", 0.5, example_inputs=X, progress=False)).plan
    assert not plan.regrouped
    assert plan.achieved == pytest.approx(0.499, abs=0.001)


def test_the_balanced_set_is_the_best_one() -> None:
    graph = fxprune.trace(net(32, 8), X)
    values = {graph.groups[0].name: np.tile([1.0, 2.0, 30.0, 40.0], 8)}  # two of each group count for nothing
    plan = fxprune.plan(graph, values, 0.5, of="channels")
    assert set(plan.removed[graph.groups[0].name]) == {c for c in range(32) if c % 4 < 2}


def test_shares_by_name_find_balanced_sets_too() -> None:
    graph = fxprune.trace(net(32, 8), X)
    for seed in range(4):
        plan = fxprune.plan(graph, drawn(graph, seed), ratios={"0": 0.5})
        assert len(plan.removed[graph.groups[0].name]) == 16
        assert not plan.regrouped


@pytest.mark.parametrize("share", [0.15, 0.3, 0.45, 0.6, 0.7])
def test_shares_by_name_are_met_as_nearly_as_balance_allows(share: float) -> None:
    """What stays is j channels of each of a groups of 4, whatever the scores."""
    graph = fxprune.trace(net(32, 8), X)
    nearest = min(abs(1 - a * j / 32 - share) for a in range(1, 9) for j in range(1, 5))
    for seed in range(4):
        plan = fxprune.plan(graph, drawn(graph, seed), ratios={"0": share})
        assert abs(len(plan.removed[graph.groups[0].name]) / 32 - share) == pytest.approx(nearest)


def test_several_norms_find_balanced_sets_together() -> None:
    graph = fxprune.trace(net(32, 8, norms=2), X)
    plans = [fxprune.plan(graph, drawn(graph, seed), ratio) for seed in range(3) for ratio in (0.3, 0.5, 0.7)]
    assert sum(bool(p.regrouped) for p in plans) <= 1  # seven without paths
    assert all(abs(p.achieved - p.ratio) < 0.01 for p in plans)
