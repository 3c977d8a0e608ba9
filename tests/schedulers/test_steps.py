"""Schedulers step by step: when rounds fall, what stays gone, and what the energy of a soft mask is made of."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import PluginError
from fxprune.graph.analysis import analyse
from fxprune.schedulers.group_lasso import GroupLasso
from fxprune.schedulers.iterative import Iterative
from fxprune.schedulers.shapes import SHAPES
from fxprune.schedulers.soft import QUARTER, Soft, SoftFlow, _coarse, _standard
from fxprune.training.scheduler import KEPT, Flow, Problem


@functools.cache
def graph() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    return analyse(net.eval(), ((torch.randn(2, 4),), {}))


def problem(ratio: float = 0.4, steps: int = 100) -> Problem:
    return Problem(graph(), ratio, steps)


def values(p: Problem, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.normal(size=len(g)) for g in p.graph.groups}


def refreshed_at(flow: Flow) -> list[int]:
    """Steps (from 1) before which fresh scores were asked for."""
    out = []
    while not flow.done:
        if flow.due:
            out.append(flow.taken + 1)
            flow.refresh(values(flow.problem, flow.taken))
        flow.step()
    return out


@pytest.mark.parametrize(
    ("rounds", "until", "want"),
    [
        (1, 0.1, [1]),
        (4, 0.4, [1, 11, 21, 31]),
        (5, 1.0, [1, 21, 41, 61, 81]),
        (10, 0.1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_rounds_fall_on_time(rounds: int, until: float, want: list[int]) -> None:
    assert refreshed_at(Iterative(rounds=rounds, until=until).begin(problem())) == want


def test_refreshes_of_a_soft_mask_fall_on_time() -> None:
    assert refreshed_at(Soft(refreshes=5, until=0.5, settle=0.5).begin(problem())) == [1, 11, 21, 31, 41]
    assert refreshed_at(Soft(refreshes=4, until=0.2, settle=0.2).begin(problem())) == [1, 6, 11, 16]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_has_gone_stays_gone_whatever_later_scores_say(shape: str) -> None:
    p = problem()
    flow = Iterative(rounds=5, shape=shape, until=0.5).begin(p)
    first, gone = values(p, 1), np.zeros(len(p.components), bool)
    while not flow.done:
        if flow.due:
            flow.refresh(first if not gone.any() else {n: -v for n, v in first.items()})
        mask = flow.step()
        assert not mask[gone].any()
        gone = mask == 0
    assert 1 - p.remaining(mask) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_round_removes_its_share(shape: str) -> None:
    p = problem()
    options = Iterative(rounds=4, shape=shape, until=1.0)
    flow = options.begin(p)
    for k in range(1, 5):
        flow.refresh(values(p, 0))
        assert 1 - p.remaining(flow.step()) == pytest.approx(0.4 * options.removed(k), abs=0.03)


def test_lasso_decays_until_it_cuts() -> None:
    p = problem(steps=10)
    flow = GroupLasso(most=0.3, until=0.6).begin(p)
    flow.refresh(values(p, 0))
    most = []
    for _ in range(10):
        mask = flow.step()
        most.append(0.0 if flow.decay is None else float(flow.decay.max()))
        assert bool((mask == 1).all()) == (flow.decay is not None)
    assert most == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0, 0, 0, 0, 0])


def test_the_price_of_a_channel_is_asked_for_within_its_group() -> None:
    """The last channel of a group is priced by half of itself: a group that is gone whole has no slope."""
    p = problem()
    mask = np.ones(len(p.components))
    mask[p.starts[0] + 1 : p.starts[1]] = 0.0
    most = np.zeros(len(p.graph.groups))

    class Asked:
        def of(self, what: str, lost: np.ndarray) -> float:
            np.maximum(most, lost, out=most)
            return float(lost.size - lost.sum())

    p.__dict__["cost"] = Asked()
    p.shares(mask)
    widths = np.diff(p.starts)
    assert most.tolist() == [widths[0] - 0.5, *(1.0 for _ in widths[1:])]


ENDS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [  # the last value that is taken, the next that is not
    (Iterative, {"rounds": 1}, {"rounds": 0}),
    (Iterative, {"until": 1.0}, {"until": 1.01}),
    (Iterative, {"until": 1e-9}, {"until": 0.0}),
    (GroupLasso, {"most": 0.99}, {"most": 1.0}),
    (GroupLasso, {"most": 1e-9}, {"most": 0.0}),
    (GroupLasso, {"until": 1.0}, {"until": 1.01}),
    (GroupLasso, {"until": 1e-9}, {"until": 0.0}),
    (Soft, {"until": 0.1, "settle": 0.1}, {"until": 0.1 + 1e-9, "settle": 0.1}),
    (Soft, {"until": 1e-9}, {"until": 0.0}),
    (Soft, {"settle": 0.5, "pace": 0.5}, {"settle": 0.5, "pace": 0.51}),
    (Soft, {"pace": 1e-9}, {"pace": 0.0}),
    (Soft, {"refreshes": 1}, {"refreshes": 0}),
    (Soft, {"memory": 0.0}, {"memory": -0.01}),
    (Soft, {"memory": 0.99}, {"memory": 1.0}),
    (Soft, {"concave": 0.0}, {"concave": -0.01}),
]


@pytest.mark.parametrize(("cls", "good", "bad"), ENDS)
def test_options_at_the_ends_of_their_ranges(cls: Any, good: dict[str, Any], bad: dict[str, Any]) -> None:
    assert cls(**good)
    with pytest.raises(PluginError, match="=".join((next(iter(bad)), ""))):
        cls(**bad)


def test_the_fewest_steps() -> None:
    assert Soft().begin(problem(steps=20))
    with pytest.raises(PluginError, match="at least 20 steps, steps=19"):
        Soft().begin(problem(steps=19))
    assert Iterative(rounds=5).begin(problem(steps=5))
    with pytest.raises(PluginError, match=r"5 rounds do not fit into steps=4; pass .* Iterative\(rounds=4\)"):
        Iterative(rounds=5).begin(problem(steps=4))


# ---- soft -----------------------------------------------------------------------------------------------------------


def soft(p: Problem, **options: Any) -> SoftFlow:
    flow = Soft(**{"until": 0.5, "settle": 0.6, "refreshes": 12, **options}).begin(p)
    assert isinstance(flow, SoftFlow)
    return flow


def test_price_allowance_and_concavity_grow_with_time() -> None:
    p, found = problem(), []
    flow = soft(p, shape="linear", concave=0.8, refreshes=6)
    while flow.chosen is None:
        if flow.due:
            flow.refresh(values(p, 0))
            found.append((flow.wanted, flow.concave))
            assert flow.multiplier == pytest.approx(1 - flow.allowed)
        flow.step()
    times = [0.02, 0.22, 0.42, 0.62, 0.82, 1.0]  # of the half of all steps in which the budget falls
    assert [w for w, _ in found] == pytest.approx([1 - 0.4 * t for t in times])
    assert [c for _, c in found] == pytest.approx([0.8 * t for t in times])
    assert flow.multiplier == flow.concave == 0


def test_the_price_is_what_meets_the_budget() -> None:
    """At the first refresh all masks are one, and the allowance is what the linear cost leaves for the wanted share."""
    p = problem()
    flow = soft(p, shape="linear", until=0.01, settle=0.6)
    flow.refresh(values(p, 0))
    total = p.shares(np.ones(len(p.components))).sum()
    assert flow.allowed == pytest.approx(1 - 0.4 / total)
    assert flow.multiplier == pytest.approx(0.4 / total)
    assert flow.shares.sum() == pytest.approx(1)


def test_where_the_mask_stands_decides_what_goes_in_the_end() -> None:
    """Latest ranks would take another set."""
    p = problem(steps=20)
    flow = soft(p, until=0.5, settle=0.5)
    flow.refresh({g.name: np.arange(16.0) for g in p.graph.groups})
    low = np.tile(np.arange(16) >= 8, 2)
    flow.mask = np.where(low, 0.1, 0.9)
    flow.taken = 10
    flow.step()
    gone = p.mask(flow.plan) == 0
    assert gone.any()
    assert not gone[~low].any()


def test_scores_between_refreshes_are_averaged_by_memory() -> None:
    p = problem()
    one, two = values(p, 1), values(p, 2)
    flow = soft(p, memory=0.75)
    flow.refresh(one)
    assert flow.scores == pytest.approx(_standard(p.flat(one)))
    flow.refresh(two)
    assert flow.scores == pytest.approx(0.75 * _standard(p.flat(one)) + 0.25 * _standard(p.flat(two)))


def test_standard_scores_have_median_zero_and_mean_distance_one() -> None:
    flat = _standard(np.array([1.0, 2.0, 30.0, -4.0, 5.0]) * 1e6)
    assert np.median(flat) == 0
    assert np.abs(flat).mean() == pytest.approx(1)
    assert _standard(np.full(3, 7.0)).tolist() == [0, 0, 0]


def test_coarse_ranks_are_means_of_groups_on_one_side_of_the_price() -> None:
    p = problem()
    ranks = np.concatenate([np.linspace(0.0, 0.3, 16), np.linspace(0.2, 0.9, 16)])
    ranks[3] = KEPT
    found = _coarse(ranks, p, 0.5)
    free = np.arange(16) != 3
    assert found[:16][free] == pytest.approx(ranks[:16][free].mean())
    assert found[3] == KEPT
    assert np.array_equal(found[16:], ranks[16:])
    assert _coarse(ranks, p, 0.1)[16:] == pytest.approx(ranks[16:].mean())
    assert Soft(coarse=True).begin(p).sample == QUARTER
    assert Soft().begin(p).sample == 1


def test_figures_tell_what_is_left_and_undecided() -> None:
    p = problem()
    flow = soft(p)
    flow.refresh(values(p, 0))
    flow.mask = np.repeat([1.0, 0.5, 0.0, 1.0], 8)
    told = flow.told()
    assert told["undecided"] == 0.25
    assert told["remaining"] == pytest.approx(p.remaining(flow.mask))
    assert told["energy"] == pytest.approx(flow.options.energy.value(flow.mask, flow.state))
    assert (told["price"], told["allowed"]) == (flow.multiplier, flow.wanted)
