"""Budgets as people state them: shares and targets, what stays, what each group loses, and how groups are ranked."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from networks import Heads
from torch import Tensor, nn

import fxprune
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import prices as prices_of
from fxprune.planning.ranking import marginal_worth, structures
from fxprune.planning.removals import Removals
from fxprune.planning.search import meet, queue
from fxprune.planning.selection import nearest_cut
from fxprune.scoring.score import Scores

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Two convolutions and a group norm on a residual stream."""

    def __init__(self, width: int, mid: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.a = nn.Conv2d(width, mid, kernel, padding=kernel // 2)
        self.b = nn.Conv2d(mid, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two, self.three = Block(16, 24), Block(16, 40), Block(16, 32, kernel=1)
        self.fc, self.head = nn.Linear(16, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.three(self.two(self.one(self.stem(x))))
        return self.head(torch.relu(self.fc(x.mean((2, 3)))))


A, B, C, STREAM, FC = "one.a.weight:0", "two.a.weight:0", "three.a.weight:0", "stem.weight:0", "fc.weight:0"


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def graph(net: Net) -> fxprune.ChannelGraph:
    return fxprune.trace(net, X)


@pytest.fixture(scope="module")
def scores(graph: fxprune.ChannelGraph) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {g.name: rng.random(len(g)) for g in graph.groups}


def lost(plan: fxprune.Plan, group: str) -> float:
    return len(plan.removed.get(group, ())) / plan.sizes[group]


# ---- target ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["params", "macs", "channels"])
def test_target_is_what_stays(graph: fxprune.ChannelGraph, scores: Any, of: str) -> None:
    before = fxprune.plan(graph, scores, 0.0).costs[of][0]
    made = fxprune.plan(graph, scores, target=0.61 * before, of=of)
    assert made.cost(of) == pytest.approx(0.61 * before, rel=0.01)
    assert made.removed == fxprune.plan(graph, scores, 0.39, of).removed


def test_target_through_prune(net: Net) -> None:
    small = fxprune.prune(net, "magnitude", target=20_000, example_inputs=X, progress=False)
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(20_000, rel=0.01)


def test_target_for_heads_and_their_dimensions() -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 5, 6)
    options: dict[str, Any] = {"example_inputs": x, "attention": "both", "ignore": ["i"], "progress": False}
    small = fxprune.prune(model, "magnitude", target=2600, **options)
    assert sum(p.numel() for p in model.parameters()) == 4547
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(2600, rel=0.1)  # a head is 11 % of it
    assert (small.heads < 4, small.dim < 8) == (True, True)
    with pytest.raises(fxprune.BudgetError, match="ratios= would count twice"):
        fxprune.prune(model, "magnitude", ratios={"q": 0.5}, **options)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"ratio": 0.3, "target": 100}, "pass one of them"),
    "neither": ({}, "pass ratio="),
    "more than there is": ({"target": 1e9}, r"outside \(0, 24,664\]"),
    "nothing": ({"target": 0}, r"target=0 is outside"),
    "no such group": ({"ratio": 0.3, "ratios": {"on.a.weight": 0.1}}, "did you mean 'one.a.weight:0'"),
    "a share of one": ({"ratio": 0.3, "ratios": {"one": 1.0}}, r"'one': 1.0.*outside \[0, 1\)"),
    "shares over the budget": ({"ratio": 0.1, "ratios": {"two.a": 0.9}}, r"ratios= alone takes 4\d\.\d%.*10.0% asked"),
    "scope": ({"ratio": 0.3, "scope": "blocks"}, "global, local or isomorphic"),
    "min_width": ({"ratio": 0.3, "min_width": 0}, "min_width=0"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_budgets_out_of_range(graph: fxprune.ChannelGraph, scores: Any, name: str) -> None:
    options, text = BAD[name]
    with pytest.raises(fxprune.BudgetError, match=text):
        fxprune.plan(graph, scores, **options)


class Weights:
    """A cost that is a sum: `weights[g]` for every channel of group g."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def of(self, measure: str, removed: Any) -> float:
        return float(1.1 * 4 * self.weights.sum() - self.weights @ removed)


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_budget_never_gives_less_however_coarse_the_steps(seed: int) -> None:
    """Two kinds of moves (as with exact norms and without), steps of 1 ... 20 % of the cost."""
    rng = np.random.default_rng(seed)
    cost: Any = Weights(rng.choice([1.0, 2.0, 5.0, 13.0], 6))
    kinds = []
    for step in (2, 1):
        ends = np.arange(0, 5, step)
        parts = [Removals(rng.random(4 // step), np.full(4, g), np.arange(4), ends) for g in range(6)]
        kinds.append(queue(parts, [np.maximum.accumulate(seq.score) for seq in parts], 6))
    before = 0.0
    for asked in np.linspace(0, 0.9, 200):
        share = nearest_cut([meet(cost, "params", kind, [], asked) for kind in kinds], asked).share
        assert share >= before
        before = share


# ---- what stays ------------------------------------------------------------------------------------------


def picks_b(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and name.endswith("weight")


IGNORES: dict[str, tuple[Any, set[str]]] = {
    "a name": ("one", {A, STREAM}),
    "a glob": (["t*.a.bias"], {B, C}),
    "a type": (nn.Linear, {FC, STREAM}),
    "a base class": ([nn.modules.batchnorm._NormBase, nn.GroupNorm], {STREAM}),
    "a type around": ((Block, "fc"), {A, B, C, STREAM, FC}),
    "a rule": (picks_b, {C, STREAM}),
    "mixed": ([picks_b, nn.Linear, "two.a"], {B, C, STREAM, FC}),
}


@pytest.mark.parametrize("name", sorted(IGNORES))
def test_ignore(net: Net, graph: fxprune.ChannelGraph, scores: Any, name: str) -> None:
    ignore, whole = IGNORES[name]
    if picks_b in (ignore if isinstance(ignore, list) else [ignore]):
        with pytest.raises(fxprune.InputsError, match="ignore=picks_b cannot be asked here"):
            fxprune.plan(graph, scores, 0.2, ignore=ignore)
    elif whole != {g.name for g in graph.groups}:
        made = fxprune.plan(graph, scores, 0.08, ignore=ignore)
        assert {g for g in made.sizes if g not in made.removed} >= whole
        assert made.removed
    if whole != {g.name for g in graph.groups}:
        small = fxprune.prune(net, "random", 0.08, example_inputs=X, ignore=ignore, max_ratio=1.0, progress=False)
        removed = fxprune.report(small).plan.removed
        assert removed
        assert not whole & set(removed)
    else:
        with pytest.raises(fxprune.BudgetError, match="without it"):
            fxprune.plan(graph, scores, 0.08, ignore=ignore)


def test_ignore_of_another_kind(graph: fxprune.ChannelGraph, scores: Any) -> None:
    with pytest.raises(fxprune.InputsError, match="ignore= holds 3; use names"):
        fxprune.plan(graph, scores, 0.2, ignore=[3])  # type: ignore[list-item]


class Tied(nn.Module):
    """A tensor with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(x) + self.a(-x)))


def test_ignore_knows_every_name_of_a_tied_tensor() -> None:
    graph = fxprune.trace(Tied(), torch.randn(2, 3))
    scores = {g.name: np.arange(len(g)) for g in graph.groups}
    with pytest.raises(fxprune.BudgetError, match=r"ignore=.*without it [1-9]"):
        fxprune.plan(graph, scores, 0.3, ignore="b.weight")


# ---- shares by name ------------------------------------------------------------------------------------------


def test_shares_by_name_are_fixed_and_the_rest_meets_the_budget(graph: fxprune.ChannelGraph, scores: Any) -> None:
    made = fxprune.plan(graph, scores, 0.4, ratios={"one.a*": 0.25, B: 0.0, "*.a": 0.95})
    assert (lost(made, A), lost(made, B)) == (0.25, 0.0)
    assert lost(made, C) == pytest.approx(0.95, abs=0.02)  # beyond the usual cap of 0.9
    assert made.achieved == pytest.approx(0.4, abs=0.005)
    gone = list(made.removed[A])
    assert set(gone) == set(np.argsort(scores[A])[:6].tolist())


def test_shares_by_name_alone_are_the_whole_budget(net: Net, graph: fxprune.ChannelGraph, scores: Any) -> None:
    made = fxprune.plan(graph, scores, ratios={"two": 0.5, "stem": 0.5})
    assert lost(made, B) == 0.5
    assert lost(made, STREAM) == pytest.approx(0.5, abs=2 / 16)  # the steps of its norm: 4 or 3 channels
    assert set(made.removed) == {B, STREAM}
    assert made.ratio == made.achieved > 0.3
    small = fxprune.prune(net, "magnitude", ratios={"two.a": 0.5}, example_inputs=X, progress=False)
    assert (small.two.a.out_channels, small.one.a.out_channels) == (20, 24)


class Skip(nn.Module):
    """Two groups of channels that meet in one group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 8, 1)
        self.norm, self.out = nn.GroupNorm(8, 24), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(torch.cat([self.a(x), self.b(x)], 1)))


def test_groups_tied_by_a_norm_lose_one_share() -> None:
    graph = fxprune.trace(Skip(), X)
    scores = {g.name: np.arange(len(g)) for g in graph.groups}
    made = fxprune.plan(graph, scores, ratios={"a": 0.5}, exact_norms=True)
    assert (lost(made, "a.weight:0"), lost(made, "b.weight:0")) == (0.5, 0.5) or not made.removed


def test_min_width(graph: fxprune.ChannelGraph, scores: Any) -> None:
    made = fxprune.plan(graph, scores, 0.5, min_width=12)
    assert min(n - len(made.removed.get(g, ())) for g, n in made.sizes.items()) >= 12
    assert made.achieved == pytest.approx(0.5, abs=0.005)
    wide = fxprune.plan(graph, scores, 0.2, min_width=24)  # groups of 16, 20 and 24 stay whole
    assert set(wide.removed) <= {B, C}
    with pytest.raises(fxprune.BudgetError, match=r"at most 0.0% can, down to .*min_width=99 \(without it 9"):
        fxprune.plan(graph, scores, 0.5, min_width=99)


# ---- ranking ------------------------------------------------------------------------------------------


def test_structures_leave_sizes_out_but_not_kernels(graph: fxprune.ChannelGraph) -> None:
    like = dict(zip((g.name for g in graph.groups), structures(graph), strict=True))
    assert like[A] == like[B]
    assert len({like[A], like[C], like[STREAM], like[FC]}) == 4


def test_isomorphic_groups_are_ranked_together(graph: fxprune.ChannelGraph, scores: Any) -> None:
    skewed = scores | {A: scores[A] + 10, C: scores[C] * 1e6}  # all of `one` is dearer than all of `two`
    made = fxprune.plan(graph, skewed, 0.3, scope="isomorphic")
    both = (len(made.removed.get(A, ())) + len(made.removed.get(B, ()))) / 64
    assert A not in made.removed
    assert both == pytest.approx(lost(made, C), abs=1 / 32 + 1 / 64)
    assert lost(made, FC) == pytest.approx(both, abs=0.1)  # small moves fill up what is left of the budget
    assert made.achieved == pytest.approx(0.3, abs=0.005)
    local = fxprune.plan(graph, skewed, 0.3, scope="local")
    assert lost(local, A) == pytest.approx(lost(local, B), abs=1 / 24 + 1 / 40)


@pytest.mark.parametrize(("of", "by_hand"), [("params", (289, 161, 21)), ("macs", (2 * 18432, 2 * 10240, 2 * 20))])
def test_prices(graph: fxprune.ChannelGraph, of: str, by_hand: tuple[int, ...]) -> None:
    prices = dict(zip((g.name for g in graph.groups), prices_of(CostModel(graph), of), strict=True))
    assert tuple(prices[name] for name in (A, C, FC)) == pytest.approx(by_hand)


@pytest.mark.parametrize("of", ["params", "macs"])
def test_the_knapsack_ranks_by_lost_worth_per_cost(graph: fxprune.ChannelGraph, scores: Any, of: str) -> None:
    prices = prices_of(CostModel(graph), of)
    uneven = {name: s + i / 4 for i, (name, s) in enumerate(scores.items())}
    dear = {g.name: uneven[g.name] * price for g, price in zip(graph.groups, prices, strict=True)}
    wanted = fxprune.plan(graph, {name: marginal_worth(s) for name, s in uneven.items()}, 0.4, of).removed
    assert fxprune.plan(graph, uneven, 0.4, of).removed != wanted
    assert fxprune.plan(graph, dear, 0.4, of, scope="knapsack").removed == wanted
    assert fxprune.plan(graph, Scores(dear, "dear", additive=True), 0.4, of).removed == wanted
    assert fxprune.plan(graph, dear, 0.4, of).removed != wanted


def test_a_channel_is_the_dearer_the_less_its_group_has_left() -> None:
    assert marginal_worth(np.array([2.0, 1.0, 0.0, 3.0])) == pytest.approx([2 * 6 / 5, 1.0, 0.0, 3 * 6 / 3])
    for alike in ([-1.0, 3.0], [0.0, 0.0], []):
        assert marginal_worth(np.array(alike)).tolist() == alike


@given(arrays(float, st.integers(1, 12), elements=st.just(0.0) | st.floats(1e-30, 1e6)))
def test_scarcity_keeps_the_order_and_bounds_the_worth(own: np.ndarray[Any, Any]) -> None:
    dearer = marginal_worth(own)
    order = np.lexsort((dearer, own))
    assert (np.diff(dearer[order]) >= 0).all()
    assert (dearer >= own * (1 - 1e-9)).all()
    assert dearer.max() <= own.sum() * (1 + 1e-9)


def test_what_has_no_score_goes_last_from_a_knapsack(graph: fxprune.ChannelGraph, scores: Any) -> None:
    """The groups that cost most would come first otherwise."""
    unscored = [g.name for g in graph.groups if g.name not in (A, B)]
    made = fxprune.plan(graph, Scores(scores, "partial", tuple(unscored), additive=True), 0.2)
    assert STREAM not in made.removed
    assert lost(made, C) <= 2 / 32  # small moves fill up what is left of the budget


def test_scores_in_memory_are_not_weighed(graph: fxprune.ChannelGraph, scores: Any) -> None:
    weighed = fxprune.plan(graph, Scores(scores, "given scores", additive=True), 0.3, "memory")
    assert weighed == fxprune.plan(graph, scores, 0.3, "memory")


def test_a_run_weighs_scores_as_one_cut_does(net: Net) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    options: dict[str, Any] = {"data": [X], "loss": loss, "example_inputs": X, "of": "macs"}
    plans = {}
    for scope in (None, "global"):
        plans[scope] = fxprune.report(fxprune.prune(net, "taylor", 0.4, scope=scope, progress=False, **options)).plan
        pruner = fxprune.Pruner(copy.deepcopy(net), "one_shot", "taylor", 0.4, steps=1, scope=scope, **options)
        pruner.step()
        assert fxprune.report(pruner.finish()).plan.removed == plans[scope].removed
    assert plans[None].removed != plans["global"].removed


def test_normalized_scores(net: Net) -> None:
    """Scores of one group a thousand times those of another: the scale goes with normalize=."""

    def skewed(ctx: Any) -> dict[str, Tensor]:
        return {n: p.abs() * (1000 if n.startswith("two") else 1) for n, p in ctx.parameters.items()}

    options: dict[str, Any] = {"example_inputs": X, "progress": False}
    plain = fxprune.report(fxprune.prune(net, skewed, 0.2, **options)).plan
    even = fxprune.report(fxprune.prune(net, skewed, 0.2, normalize="mean", **options)).plan
    assert B not in plain.removed
    assert B in even.removed


# ---- how far one can go ------------------------------------------------------------------------------------------

LIMITS: dict[str, dict[str, Any]] = {
    "max_ratio=0.1": {"max_ratio": 0.1},
    "min_width=14": {"min_width": 14},
    "round_to=32": {"round_to": 32},
    "ignore=['Conv2d', 'fc']": {"ignore": [nn.Conv2d, "fc"]},
    "ratios of 2 names": {"ratios": {"two": 0.1, "stem": 0.0}},
}


@pytest.mark.parametrize("text", sorted(LIMITS))
def test_error_states_the_reachable_maximum_for_every_limit(
    graph: fxprune.ChannelGraph, scores: Any, text: str
) -> None:
    asked = 0.95
    with pytest.raises(fxprune.BudgetError, match=re.escape(text)) as caught:
        fxprune.plan(graph, scores, asked, **LIMITS[text])
    most, free = caught.value.reachable, re.search(rf"{re.escape(text)} \(without it ([\d.]+)%\)", str(caught.value))
    assert most is not None
    assert free is not None
    assert most < float(free[1]) / 100
    assert f"at most {most:.1%} can" in str(caught.value)
    if most > 0:
        reached = fxprune.plan(graph, scores, most - 1e-6, **LIMITS[text])
        assert reached.achieved == pytest.approx(most, abs=0.01)
    fxprune.plan(graph, scores, float(free[1]) / 100 - 0.01)


def test_error_names_parameters_that_the_forward_does_not_use() -> None:
    class Half(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    half = Half(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(30, 40))
    with pytest.raises(fxprune.BudgetError, match="In the way: 1,240 parameters that the forward does not use"):
        fxprune.prune(half, "magnitude", 0.5, example_inputs=torch.randn(2, 4), progress=False)
