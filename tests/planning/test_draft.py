"""Plans edited by hand stay valid; plans replay on other checkpoints."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from networks import build
from torch import Tensor, nn

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.verification import check_dense

IMAGE, TOKEN = ["Residual", "CatSkip", "Grouped"], ["Attention", "Mlp"]


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, fxprune.ChannelGraph, fxprune.Plan, fxprune.Plan]:
    """A network with group norms, also over a concatenation, and two plans of other scores and sizes."""
    model, inputs = build(IMAGE, TOKEN, 3)
    graph = analyse(model, as_inputs(inputs))
    plans = []
    for seed, ratio in ((0, 0.3), (1, 0.5)):
        rng = np.random.default_rng(seed)
        plans.append(fxprune.plan(graph, {g.name: rng.random(len(g)) for g in graph.groups}, ratio))
    return model, graph, *plans


def gone(plan: fxprune.Plan) -> set[tuple[str, int]]:
    return {(g, c) for g, channels in plan.removed.items() for c in channels}


def runs(model: nn.Module, graph: fxprune.ChannelGraph, plan: fxprune.Plan) -> bool:
    return check_dense(model, fxprune.rewrite(model, graph, plan).model, graph, plan).ok


def test_a_plan_is_its_own_draft(made: Any) -> None:
    _, graph, first, second = made
    for plan in (first, second):
        again = (plan & plan).on(graph)
        assert again.removed == plan.removed
        assert (again.costs, again.norms, again.achieved) == (plan.costs, plan.norms, pytest.approx(plan.achieved))


def test_kept_channels_stay_and_nothing_else_goes(made: Any) -> None:
    model, graph, _, plan = made
    for name in plan.removed:
        first = plan.removed[name][0]
        edited = plan.keep(name, [first]).on(graph)
        assert gone(edited) <= gone(plan) - {(name, first)}
        assert edited.cost() > plan.cost()
        whole = plan.keep(name).on(graph)
        assert name not in whole.removed
        assert gone(whole) <= gone(plan)
        assert runs(model, graph, edited)
    assert not gone(plan.keep("*").on(graph))


def test_union_and_intersection(made: Any) -> None:
    model, graph, a, b = made
    union, both = (a | b).on(graph), (a & b).on(graph)
    assert gone(union) <= gone(a) | gone(b)
    assert gone(both) <= gone(a) & gone(b)
    assert union.cost() < min(a.cost(), b.cost())
    assert both.cost() > max(a.cost(), b.cost())
    free = {g.name for g in graph.groups if g.kind == "channels"} & {"token.1.a.weight:0", "image.0.a.weight:0"}
    assert free
    for name in free:
        assert set(union.removed[name]) == set(a.removed.get(name, ())) | set(b.removed.get(name, ()))
    for plan in (union, both):
        assert runs(model, graph, plan)
        sizes = [p.numel() for p in fxprune.rewrite(model, graph, plan).model.parameters()]
        assert plan.cost("params") == sum(sizes)


def test_drafts_chain_and_print(made: Any) -> None:
    _, graph, a, b = made
    draft = (a | b).keep("image.0.*") & b
    assert "up to" in repr(draft)
    assert not any(g.startswith("image.0") for g in draft.on(graph).removed)
    assert draft.plans == (a, b, b)
    rounded = (a | b).on(graph, round_to=4)
    width = graph.group("token.1.a.weight:0")
    assert (len(width) - len(rounded.removed[width.name])) % 4 == 0


def test_diff(made: Any) -> None:
    _, _graph, a, b = made
    found = a.diff(b)
    assert {(g, c) for g, cs in found.only_first.items() for c in cs} == gone(a) - gone(b)
    assert {(g, c) for g, cs in found.only_second.items() for c in cs} == gone(b) - gone(a)
    assert found.costs["params"] == (a.cost("params"), b.cost("params"))
    assert f"{len(set(found.only_first) | set(found.only_second))} groups differ" in repr(found)
    assert not a.diff(a)
    assert a.diff(b)


def test_bad_edits(made: Any) -> None:
    model, _graph, a, _ = made
    with pytest.raises(fxprune.PlanError, match=r"no group is called 'imag.0.a'; did you mean 'image.0.a.weight:0'"):
        a.keep("imag.0.a")
    with pytest.raises(fxprune.PlanError, match="so no channel 99"):
        a.keep("image.0.a", [99])
    with pytest.raises(fxprune.BudgetError, match="counts params, macs, channels"):
        a.cost("joules")
    other, inputs = build(["Conv"], [], 0)
    alien = analyse(other, as_inputs(inputs))
    plan = fxprune.plan(alien, {g.name: np.arange(len(g)) for g in alien.groups}, 0.3)
    for call in (lambda: a | plan, lambda: a & plan, lambda: a.diff(plan)):
        with pytest.raises(fxprune.PlanError, match="different graphs"):
            call()
    with pytest.raises(fxprune.PlanError, match="make a new one"):
        a.keep("image.0.a").on(alien)
    with pytest.raises(fxprune.PlanError, match=r"a Draft; an edited plan becomes one with \.on\(graph\)"):
        fxprune.apply(model, a.keep("image.0.a"))  # type: ignore[arg-type]


# ---- replay ------------------------------------------------------------------------------------------


def ema_of(model: nn.Module) -> nn.Module:
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    average.update_parameters(model)
    with torch.no_grad():
        model.stem.weight.mul_(1.1)
    average.update_parameters(model)
    return average.module


def test_replay_on_an_ema_copy() -> None:
    torch.manual_seed(0)
    model, inputs = build(IMAGE, TOKEN, 3)
    ema = ema_of(model)
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=inputs, progress=False)
    plan = fxprune.Plan.from_json(fxprune.report(small).plan.to_json())
    small_ema = fxprune.apply(ema, plan, example_inputs=inputs)
    assert [p.shape for p in small_ema.parameters()] == [p.shape for p in small.parameters()]
    keep = sorted(set(range(8)) - set(plan.removed.get("stem.weight:0", ())))
    assert torch.equal(small_ema.stem.weight, ema.stem.weight[keep])
    assert not torch.equal(small_ema.stem.weight, small.stem.weight)
    assert fxprune.report(small_ema).checks[0].ok
    assert ema.stem.weight.shape[0] == 8
    assert fxprune.apply(ema, plan, example_inputs=inputs, inplace=True) is ema
    with pytest.raises(fxprune.PlanError, match="make a new one"):
        fxprune.apply(ema, plan, example_inputs=inputs)


class Literal(nn.Module):
    """Its forward holds a number, which the trace sees only when the proof fails: prune() plans twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.a(x).view(-1, 8))))


class Streamed(nn.Module):
    """Its head_dim goes with the stream, in one step that the attention option decides."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.qkv, self.proj, self.o = nn.Linear(6, 16), nn.Linear(16, 96), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.i(x)).view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(self.proj(y.transpose(1, 2).reshape(b, n, -1)))


@pytest.mark.parametrize("case", ["held", "head_dim"])
def test_replay_where_the_graph_was_not_the_traced_one(case: str) -> None:
    cls, x, options = {
        "held": (Literal, torch.randn(4, 6), {}),
        "head_dim": (Streamed, torch.randn(2, 5, 6), {"attention": "head_dim", "ignore": ["i"]}),
    }[case]
    torch.manual_seed(0)
    model, sibling = cls(), cls()
    small = fxprune.prune(model, "random", 0.6, example_inputs=x, progress=False, **options)
    plan = fxprune.report(small).plan
    assert plan.traced == (("head_dim",) if case == "head_dim" else ("heads", *plan.traced[1:]))
    assert (len(plan.traced) > 1) is (case == "held")
    again = fxprune.apply(sibling, plan, example_inputs=x)
    assert [p.shape for p in again.parameters()] == [p.shape for p in small.parameters()]
    assert fxprune.report(again).forward == fxprune.report(small).forward
    damaged = json.loads(plan.to_json()) | {"traced": ["heads", "hold 999"]}
    with pytest.raises(fxprune.PlanError, match="'hold 999' is no step"):
        fxprune.apply(copy.deepcopy(sibling), fxprune.Plan.from_json(json.dumps(damaged)), example_inputs=x)


def test_a_plan_written_before_it_said_how_it_was_traced(made: Any) -> None:
    _, _, plan, _ = made
    data = json.loads(plan.to_json())
    assert data["cost"]["params"] == list(plan.costs["params"])
    del data["traced"]
    assert fxprune.Plan.from_json(json.dumps(data)) == plan
