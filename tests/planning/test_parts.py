"""The planner's parts by hand: sums of products, queues, keys, limits, widths, and the text of a plan."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.planning.budget import Budget
from fxprune.planning.costs.polynomials import terms_of
from fxprune.planning.limits import Limits, stated_parts
from fxprune.planning.norms import NormChange, norm_changes
from fxprune.planning.options import gathered
from fxprune.planning.plan import Plan
from fxprune.planning.plan_diff import PlanDiff
from fxprune.planning.ranking import by_harm, keys, lost, size, touched
from fxprune.planning.removals import Removals
from fxprune.planning.rounding import best_width
from fxprune.planning.search import meet, queue

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph() -> fxprune.ChannelGraph:
    torch.manual_seed(0)
    return fxprune.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), X)


@pytest.fixture(scope="module")
def plan(graph: fxprune.ChannelGraph) -> Plan:
    scores = {g.name: np.arange(len(g), dtype=float) for g in graph.groups}
    return fxprune.plan(graph, scores, 0.4)


def moves(group: int, scores: list[float], each: int = 1) -> Removals:
    """Moves that take `each` channels of a group, from the first on."""
    number = len(scores) * each
    return Removals(
        np.array(scores, float),
        np.full(number, group),
        np.arange(number),
        np.arange(0, number + 1, each),
    )


class Weighed:
    """A cost of so much a channel."""

    def __init__(self, prices: list[float], total: float) -> None:
        self.prices, self.total = np.array(prices), total

    def of(self, _: str, removed: Any) -> float:
        return float(self.total - self.prices @ removed)


# ---- sums of products -----------------------------------------------------------------------------------------------


def test_terms_are_products_of_what_is_left(graph: fxprune.ChannelGraph) -> None:
    wide, narrow = (graph.tensors[name][0] for name in ("0.weight", "2.weight"))
    terms = terms_of(graph, [(3.0, [wide, narrow]), (2.0, [narrow, None]), (5.0, [])])
    none, some = np.zeros(2), np.array([2.0, 1.0])
    assert terms.each(none).tolist() == [3 * 8 * 4, 2 * 4, 5]
    assert terms.each(some).tolist() == [3 * 6 * 3, 2 * 3, 5]
    assert terms.total(some) == 54 + 6 + 5
    assert terms_of(graph, []).total(none) == 0


# ---- queues ---------------------------------------------------------------------------------------------------------


def test_a_queue_is_in_the_order_of_its_keys_and_knows_whose_moves_they_are() -> None:
    parts = [moves(0, [1, 3]), moves(1, [2, 2.5], each=2)]
    held = queue(parts, [p.score for p in parts], 2)
    assert held.part.tolist() == [0, 1, 1, 0]
    assert held.removals.score.tolist() == [1, 2, 2.5, 3]
    assert held.removals.group.tolist() == [0, 1, 1, 1, 1, 0]
    assert held.removals.channel.tolist() == [0, 0, 1, 2, 3, 1]
    assert held.removals.ends.tolist() == [0, 1, 3, 5, 6]
    assert held.loss(1, 3).tolist() == [0, 4]
    assert held.loss(0, 4).tolist() == [2, 4]
    assert queue([], [], 3).loss(0, 0).tolist() == [0, 0, 0]


def test_a_budget_is_filled_from_below_and_the_next_cut_is_the_cheapest_above() -> None:
    parts = [moves(0, [1, 2, 3, 4]), moves(1, [1.5, 2.5])]
    cost = Weighed([10.0, 3.0], 100.0)
    met = meet(cost, "any", queue(parts, [p.score for p in parts], 2), [], 0.35)  # type: ignore[arg-type]
    # 10, 13, 23, 26 fit; the third of the first part (36) does not, and nothing is left that would
    assert met.below.removed.tolist() == [2, 2]
    assert met.below.share == pytest.approx(0.26)
    assert met.above is not None
    assert met.above.removed.tolist() == [3, 2]
    assert met.above.share == pytest.approx(0.36)
    assert (met.least, met.reachable) == (0, pytest.approx(0.46))


def test_what_does_not_fit_is_passed_over_with_all_that_waits_for_it() -> None:
    parts = [moves(0, [1, 2]), moves(1, [1.5, 2.5, 3.5])]
    cost = Weighed([20.0, 4.0], 100.0)
    met = meet(cost, "any", queue(parts, [p.score for p in parts], 2), [], 0.33)  # type: ignore[arg-type]
    assert met.below.removed.tolist() == [1, 3]
    assert met.below.share == pytest.approx(0.32)
    assert met.above is not None
    assert met.above.removed.tolist() == [2, 1]


def test_what_is_stated_goes_first_and_counts() -> None:
    stated, rest = moves(1, [9, 9]), moves(0, [1, 2, 3])
    cost = Weighed([10.0, 5.0], 100.0)
    met = meet(cost, "any", queue([rest], [rest.score], 2), [stated], 0.3)  # type: ignore[arg-type]
    assert met.least == pytest.approx(0.1)
    assert met.below.removed.tolist() == [2, 2]
    assert met.reachable == pytest.approx(0.4)
    assert met.above is not None
    whole = meet(cost, "any", queue([rest], [rest.score], 2), [stated], 0.9)  # type: ignore[arg-type]
    assert whole.above is None
    assert whole.below.share == whole.reachable


# ---- ranking --------------------------------------------------------------------------------------------------------


def test_keys_by_scope(graph: fxprune.ChannelGraph) -> None:
    parts = [moves(0, [3, 1, 5]), moves(1, [2, 4])]
    assert [k.tolist() for k in keys(graph, parts, "global")] == [[3, 3, 5], [2, 4]]
    local = keys(graph, parts, "local")
    assert [k.tolist() for k in local] == [pytest.approx([1 / 8, 2 / 8, 3 / 8]), pytest.approx([1 / 4, 2 / 4])]
    together = keys(graph, parts, "isomorphic")  # both are rows of one linear layer and columns of the next
    assert [k.tolist() for k in together] == [
        pytest.approx([2 / 12, 3 / 12, 5 / 12]),
        pytest.approx([1 / 12, 4 / 12]),
    ]
    assert (touched(parts[1]), size(graph, parts[1])) == ([1], 4)
    assert lost(graph, moves(0, [1, 1], each=2)).tolist() == [0.25, 0.5]


def test_a_table_ranks_what_it_knows_by_the_harm_so_far(graph: fxprune.ChannelGraph) -> None:
    def harm(names: Any, shares: Any) -> Any:
        return np.array([2.0, 1.0, 3.0])[: len(shares)] if names == [graph.groups[0].name] else None

    table = SimpleNamespace(harm=harm)
    first, other = moves(0, [1, 1, 1]), moves(1, [1, 1])
    known, found = by_harm(graph, [first, other], table)
    assert known == [first]
    assert [f.tolist() for f in found] == [[2, 2, 3]]


# ---- limits and budgets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [{"max_ratio": 1.0}, {"min_width": 1}, {"ratios": {"a": 0}}, {"round_to": 1}])
def test_limits_at_their_ends(good: dict[str, Any]) -> None:
    assert Limits(**good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_ratio": 0.0}, r"max_ratio=0.0 must be in \(0, 1\]"),
        ({"max_ratio": 1.01}, "max_ratio=1.01"),
        ({"min_width": 0}, "min_width=0 must be at least 1"),
        ({"ratios": {"a": 1.0}}, "outside"),
        ({"ratios": {"a": -0.1}}, "outside"),
        ({"round_to": 0}, "round_to=0 must be at least 1"),
        ({"scope": "somewhere"}, "scope='somewhere' is unknown; choose knapsack, global, local or isomorphic"),
    ],
)
def test_limits_out_of_range(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(fxprune.BudgetError, match=message):
        Limits(**bad)


def test_every_limit_that_is_set_can_be_loosened_alone() -> None:
    limits = Limits(ratios={"a": 0.1, "b": 0.2}, ignore="c", round_to=4, min_width=2, max_ratio=0.5, exact_norms=True)
    told = dict(limits.loosened())
    assert told == {
        "max_ratio=0.5": replace(limits, max_ratio=1.0),
        "min_width=2": replace(limits, min_width=1),
        "round_to=4": replace(limits, round_to=1),
        "exact_norms=True": replace(limits, exact_norms=False),
        "ignore=['c']": replace(limits, ignore=()),
        "ratios of 2 names": replace(limits, ratios=None),
    }
    assert dict(Limits().loosened()) == {}
    assert dict(Limits(max_ratio=1.0).loosened()) == {}
    assert (Limits().caps, Limits(max_ratio=0.5).caps) == ((0.9, 1.0), (0.5,))
    assert (Limits(round_to="auto").multiple, Limits(round_to=8).multiple) == (1, 8)


def test_a_target_is_a_share() -> None:
    costs: Any = Weighed([1.0], 200.0)
    costs.graph = SimpleNamespace(groups=[0], model_class="Net")
    assert Budget(target=50).share(costs) == pytest.approx(0.75)
    assert Budget(target=200).share(costs) == 0
    assert Budget(0.25).share(costs) == 0.25
    for odd in ({"ratio": "0.5"}, {"ratio": True}, {"target": [50]}):
        with pytest.raises(fxprune.BudgetError, match=f"{next(iter(odd))} must be a .*number"):
            Budget(**odd)  # type: ignore[arg-type]
    for target in (0, 201):
        with pytest.raises(fxprune.BudgetError, match=r"is outside \(0, 200\]"):
            Budget(target=target).share(costs)


def test_options_are_given_in_one_value_or_one_by_one() -> None:
    limits = Limits(round_to=4)
    assert gathered(Limits, None, {"round_to": 4}) == limits
    assert gathered(Limits, limits, {"min_width": 1, "max_ratio": None}) is limits
    assert gathered(Budget, Budget(0.5), {"of": "".join(("par", "ams"))}).ratio == 0.5  # another object, the same word
    with pytest.raises(
        fxprune.InputsError, match=r"min_width=2 and limits= both set the same; pass limits=Limits\(min"
    ):
        gathered(Limits, limits, {"round_to": 1, "min_width": 2})
    with pytest.raises(fxprune.InputsError, match=r"limits= is a int; pass an fxprune\.Limits"):
        gathered(Limits, 4, {})  # type: ignore[arg-type]


def test_of_several_families_the_steps_that_come_nearest_are_taken(graph: fxprune.ChannelGraph) -> None:
    """8 channels by threes or by twos, where 45 % are to go: 3 of 8 are farther from that than 4 of 8."""

    def by(step: int) -> Removals:
        ends = np.arange(0, 8, step)
        return Removals(np.ones(len(ends) - 1), np.zeros(ends[-1], int), np.arange(ends[-1]), ends)

    for families in ([[by(3)], [by(2)]], [[by(2)], [by(3)]]):
        (seq,) = stated_parts(graph, families, {0: 0.45})
        assert seq.channel.tolist() == [0, 1, 2, 3]
    (first,) = stated_parts(graph, [[by(3)], [by(3)]], {0: 0.45})
    assert len(first.channel) == 3


def test_a_norm_that_stays_hides_none_that_does_not() -> None:
    layers = (nn.Conv2d(2, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1))
    graph = fxprune.trace(nn.Sequential(*layers), torch.ones(1, 2, 3, 3))
    keep = np.ones(int(graph.component.max()) + 1, bool)
    (_, second) = graph.facts.norm_groups
    keep[graph.component[second.axis][:2]] = False
    assert norm_changes(graph, keep) == {second.node: NormChange(4, 3, exact=True)}


# ---- widths ---------------------------------------------------------------------------------------------------------


def attempts(plan: Plan, found: dict[int, Plan | None]) -> Any:
    def attempt(width: int) -> Plan:
        if (made := found.get(width)) is None:
            raise fxprune.BudgetError("not so")
        return made

    return attempt


def test_the_widest_that_is_near_and_keeps_the_scores_is_taken(
    graph: fxprune.ChannelGraph, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.planning.rounding.fast_widths", lambda *_: (8, 4, 2))
    scores = {g.name: np.arange(len(g), dtype=float) for g in graph.groups}
    name = graph.groups[0].name

    def made(removed: tuple[int, ...], off: float = 0.0) -> Plan:
        return replace(plan, removed={name: removed}, achieved=plan.ratio + off)

    plain, same, worse = made((0, 1)), made((0, 1), 0.005), made((6, 7))
    assert best_width(attempts(plan, {1: plain, 4: same, 2: worse}), graph, scores) is same
    assert best_width(attempts(plan, {1: plain, 8: made((0, 1), 0.02), 2: same}), graph, scores) is same
    assert best_width(attempts(plan, {1: plain, 8: worse}), graph, scores) is plain
    timed = [replace(p, of="latency") for p in (made((6, 7)), made((5, 6)), made((0, 2)))]
    assert best_width(attempts(plan, dict(zip((1, 8, 4), timed, strict=True))), graph, scores) is timed[2]


# ---- text -----------------------------------------------------------------------------------------------------------

DAMAGE: dict[str, tuple[Any, Any, str]] = {
    "newer": ("format", 999, "newer format"),
    "field": ("surprise", 1, "a field 'surprise', which plans have not"),
    "size": ("sizes", {"a": -1}, "-1 is no index or number of channels"),
    "true": ("sizes", {"a": True}, "True is no index"),
    "half": ("removed", {"0.weight:0": [0.5]}, "0.5 is no index"),
    "unknown": ("removed", {"b": [0]}, "removes channels of 'b', whose size it does not give"),
    "ratio": ("ratio", float("nan"), "nan is no finite number"),
    "number": ("achieved", "0.4", "'0.4' is no finite number"),
    "yes": ("achieved", True, "True is no finite number"),
    "model": ("model", 3, "model is a int, not text"),
    "criterion": ("criterion", None, "criterion is a NoneType"),
    "cost": ("cost", {"params": [1]}, "no cost before and after"),
    "cost3": ("cost", {"params": [1, 2, 3]}, "no cost before and after"),
    "norm": ("norms", {"n": {"before": 0, "after": 1, "exact": True}}, "no numbers of groups"),
    "exact": ("norms", {"n": {"before": 2, "after": 1, "exact": 1}}, "not true or false"),
    "traced": ("traced", [], "traced is empty"),
    "names": ("blocks", "abc", "'abc' is no list of names"),
    "made": ("made_by", {"a": [1]}, "is no list of names"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_text_is_no_plan(name: str, plan: Plan) -> None:
    key, value, message = DAMAGE[name]
    data = json.loads(plan.to_json())
    assert Plan.from_json(json.dumps(data)) == plan
    data[key] = value
    with pytest.raises(fxprune.PlanError, match=message):
        Plan.from_json(json.dumps(data))


def test_what_is_no_text_is_named() -> None:
    with pytest.raises(fxprune.PlanError, match=r"Plan\.from_json\(text=3\): text must be"):
        Plan.from_json(3)  # type: ignore[arg-type]


def test_a_difference_prints_costs_and_the_first_groups() -> None:
    only = {f"g{i}": (0, 1) for i in range(18)}
    told = repr(PlanDiff(only, {"g0": (2,)}, {"params": (1200.0, 900.0)})).splitlines()
    assert told[:3] == ["18 groups differ", "  params    1,200 | 900 (-300)", "  g0: 2 | 1 go here only"]
    assert told[-1] == "  ... and 2 more"
    assert len(told) == 2 + 16 + 1
    assert "more" not in repr(PlanDiff(dict(list(only.items())[:16]), {}, {}))
