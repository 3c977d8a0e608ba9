"""Laws of planning on random networks and scores: constraints hold, more costs less, the same seed gives the same plan.

FXPRUNE_EXAMPLES sets how many networks are drawn (500 was run once; CI draws fewer).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, SETTINGS, build
from plan_checker import violations

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs

SCORES = ("uniform", "ties", "constant", "signed", "skewed")
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "round_to": st.sampled_from([2, 4]),
        "min_width": st.sampled_from([2, 5]),
        "max_ratio": st.sampled_from([0.3, 0.5, 0.75, 1.0]),
        "exact_norms": st.booleans(),
        "ignore": st.sampled_from([("stem",), ("image.0",), ("token.1", "embed")]),
        "scope": st.sampled_from(["local", "isomorphic"]),
    },
)
OF = st.sampled_from(["params", "macs", "channels"])


def traced(network: tuple[list[str], list[str], int]) -> ChannelGraph:
    model, inputs = build(*network)
    return analyse(model, as_inputs(inputs))


def fitting(limits: dict[str, Any], graph: ChannelGraph) -> dict[str, Any]:
    """The limits, without the names in `ignore` that this network does not have."""
    known = {place for places in graph.within.values() for place in places}
    return {k: tuple(n for n in v if n in known) if k == "ignore" else v for k, v in limits.items()}


def scores(graph: ChannelGraph, kind: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    make = {
        "uniform": lambda n: rng.random(n),
        "ties": lambda n: rng.integers(0, 3, n).astype(float),
        "constant": lambda n: np.zeros(n),
        "signed": lambda n: rng.normal(size=n),
        "skewed": lambda n: rng.random(n) * 10.0 ** rng.integers(-6, 7),
    }[kind]
    return {g.name: make(len(g)) for g in graph.groups}


def planned(graph: ChannelGraph, values: dict[str, Any], ratio: float, of: str, **limits: Any) -> fxprune.Plan | None:
    try:
        return fxprune.plan(graph, values, ratio, of, **limits)
    except fxprune.BudgetError as e:
        reachable = e.reachable
    assert reachable is not None
    assert reachable < ratio
    return None


@SETTINGS
@given(NETWORKS, st.sampled_from(SCORES), LIMITS, OF, st.lists(st.floats(0.02, 0.95), min_size=2, max_size=4))
def test_every_constraint_holds_and_a_larger_ratio_never_costs_more(
    network: tuple[list[str], list[str], int], kind: str, limits: dict[str, Any], of: str, ratios: list[float]
) -> None:
    graph = traced(network)
    limits = fitting(limits, graph)
    values = scores(graph, kind, network[2])
    before: fxprune.Plan | None = None
    for ratio in sorted(ratios):
        plan = planned(graph, values, ratio, of, **limits)
        if plan is None:
            continue
        assert not violations(graph, plan, **limits)
        if before is not None:
            assert plan.cost() <= before.cost()
        before = plan


@SETTINGS
@given(NETWORKS, st.sampled_from(SCORES), LIMITS, st.floats(0.05, 0.8))
def test_edits_and_shares_by_name_keep_every_constraint(
    network: tuple[list[str], list[str], int], kind: str, limits: dict[str, Any], ratio: float
) -> None:
    graph = traced(network)
    limits = fitting(limits, graph)
    rng = np.random.default_rng(network[2])
    plans = [planned(graph, scores(graph, kind, network[2] + i), ratio, "params", **limits) for i in (0, 1)]
    shares = {g.name: float(rng.random()) for g in graph.groups if rng.random() < 0.4}
    stated = fxprune.plan(graph, scores(graph, kind, 0), ratios=shares, **limits) if shares else None
    if stated is not None:
        kept = {k: v for k, v in limits.items() if k != "max_ratio"}  # a share by name goes beyond it
        assert not violations(graph, stated, **kept)
    if None in plans:
        return
    first, second = plans
    assert first is not None
    assert second is not None
    again = {k: v for k, v in limits.items() if k in ("round_to", "min_width", "max_ratio")}
    assert (first & first).on(graph).removed == first.removed
    some = graph.groups[int(rng.integers(len(graph.groups)))]
    for draft in (first | second, first & second, first.keep(some.name, [0]), (first | second).keep(some.name)):
        plan = draft.on(graph, **again)
        assert not violations(graph, plan, **again, exact_norms=limits.get("exact_norms", False))
        assert all(set(cs) <= {c for c, v in enumerate(draft.votes[g]) if v} for g, cs in plan.removed.items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
def test_the_same_seed_gives_the_same_plan(seed: int, scope: str) -> None:
    network = (["Residual", "CatSkip", "Grouped"], ["Attention", "Mlp"], seed)
    one, two = (fxprune.plan(g := traced(network), scores(g, "ties", seed), 0.4, scope=scope) for _ in range(2))
    assert dataclasses.asdict(one) == dataclasses.asdict(two)
