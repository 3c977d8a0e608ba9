"""Bad input gets one clear error of the FxPruneError family, and the model stays as it was."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from networks import Heads
from torch import Tensor, nn

import fxprune


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Reluctant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or torch.compiler.is_compiling():
            raise NotImplementedError("not for tracers")  # the line to name
        return self.a(x)


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def nan_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).sum() * float("nan")


def nan_scores(ctx: Any) -> dict[str, Tensor]:
    return {n: torch.full_like(p, float("nan")) for n, p in ctx.parameters.items()}


CASES: dict[str, tuple[type[nn.Module], dict[str, Any], type[Exception], str]] = {
    "ratio above": (Small, {"ratio": 1.0}, fxprune.BudgetError, r"outside \[0, 1\)"),
    "ratio below": (Small, {"ratio": -0.1}, fxprune.BudgetError, r"outside \[0, 1\)"),
    "unknown measure": (Small, {"of": "parms"}, fxprune.BudgetError, "choose one of params"),
    "unknown criterion": (Small, {"criterion": "magnitud"}, fxprune.FxPruneError, "magnitude"),
    "unknown scheduler": (Small, {"scheduler": "one_shoot"}, fxprune.FxPruneError, "one_shot"),
    "unknown attention": (Small, {"attention": "head"}, fxprune.InputsError, "heads or head_dim"),
    "no inputs": (Small, {"example_inputs": None}, fxprune.InputsError, "pass example_inputs="),
    "wrong inputs": (Small, {"example_inputs": torch.randn(2, 5)}, fxprune.InputsError, "does not run on the example"),
    "inputs of no form": (Small, {"example_inputs": 3}, fxprune.InputsError, "pass a tensor"),
    "not exportable": (Reluctant, {}, fxprune.TraceError, "the line to name"),
    "nothing prunable": (Alone, {}, fxprune.BudgetError, "nothing"),
    "too far": (Small, {"ratio": 0.99}, fxprune.BudgetError, "at most"),
    "no data": (Small, {"criterion": "taylor"}, fxprune.InputsError, "data"),
    "a batch for batches": (
        Small,
        {"criterion": "taylor", "data": X, "loss": lambda m, b: m(b).sum()},
        fxprune.InputsError,
        "iterable|batches",
    ),
    "nan loss": (
        Small,
        {"criterion": "taylor", "data": [X], "loss": nan_loss},
        fxprune.CriterionError,
        "(?i)nan|finite",
    ),
    "nan scores": (Small, {"criterion": nan_scores}, fxprune.CriterionError, "(?i)nan|finite"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_bad_input(name: str) -> None:
    cls, options, error, text = CASES[name]
    torch.manual_seed(0)
    model = cls()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=text) as caught:
        fxprune.prune(
            model, **{"criterion": "magnitude", "ratio": 0.4, "example_inputs": X, "progress": False} | options
        )
    assert isinstance(caught.value, fxprune.FxPruneError)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_plan_for_another_model() -> None:
    model = Small()
    graph = fxprune.trace(model, X)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    other = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(fxprune.PlanError, match="make a new one"):
        fxprune.rewrite(other, fxprune.trace(other, X), plan)
    with pytest.raises(fxprune.PlanError, match="trace this model"):
        fxprune.rewrite(other, graph, plan)


def test_plan_is_data() -> None:
    model = Small()
    graph = fxprune.trace(model, X)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    assert "b.weight:0" in repr(plan)
    with pytest.raises(fxprune.PlanError, match="not a plan"):
        fxprune.Plan.from_json('{"format": 1, "model": 3}')
    for bad in ('"model": ["a"]', '"ratio": "x"', '"removed": {"a.weight:0": [1.5]}', '"removed": {"nope": [1]}'):
        key = bad.split(":")[0]
        data = json.loads(plan.to_json()) | json.loads("{" + bad + "}")
        assert key.strip('"') in data
        with pytest.raises(fxprune.PlanError, match="not a plan"):
            fxprune.Plan.from_json(json.dumps(data))
    with pytest.raises(fxprune.PlanError, match="newer"):
        fxprune.Plan.from_json(plan.to_json().replace('"format": 1', '"format": 99'))


def test_replay_on_another_checkpoint() -> None:
    torch.manual_seed(0)
    model, sibling = Small(), Small()
    graph = fxprune.trace(model, X)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    small = fxprune.rewrite(sibling, graph, plan).model
    gone = set(plan.removed["a.weight:0"])
    kept = [i for i in range(16) if i not in gone]
    assert torch.equal(small.a.weight, sibling.a.weight[kept])


def test_ratio_zero_changes_nothing() -> None:
    model = Small()
    small = fxprune.prune(model, "magnitude", 0.0, example_inputs=X, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))
    assert small.training


def test_ignore_and_limits() -> None:
    model = Small()
    small = fxprune.prune(model, "magnitude", 0.2, example_inputs=X, ignore=["a"], progress=False)
    assert small.a.out_features == 16
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=X, round_to=4, progress=False)
    assert small.a.out_features % 4 == 0
    assert small.b.out_features % 4 == 0
    local = fxprune.report(fxprune.prune(model, "magnitude", 0.5, example_inputs=X, scope="local", progress=False)).plan
    assert abs(len(local.removed["a.weight:0"]) - len(local.removed["b.weight:0"])) <= 1


@pytest.mark.parametrize(
    ("attention", "heads", "dim"), [("heads", True, False), ("head_dim", False, True), ("both", True, True)]
)
def test_attention_gives_heads_or_dimensions(attention: str, heads: bool, dim: bool) -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 5, 6)
    options: dict[str, Any] = {"example_inputs": x, "attention": attention, "ignore": ["i"], "progress": False}
    small = fxprune.prune(model, "magnitude", 0.5, **options)
    assert (small.heads < 4) is heads
    assert (small.dim < 8) is dim
    batches = (x for _ in range(2))  # read once, though "both" scores twice
    fxprune.prune(model, "taylor", 0.3, data=batches, loss=lambda m, b: m(b).pow(2).mean(), **options)
    report = fxprune.report(small)
    assert {(c.name, c.before) for c in report.changes if not c.path} == set(
        [("heads", 4)] * heads + [("dim", 8)] * dim
    )
    assert len(report.earlier) == (attention == "both")


def test_planning_anew_does_not_score_anew() -> None:
    """A literal in the forward makes prune() plan twice; the criterion runs once."""
    calls = []

    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(self.a(x).view(-1, 8))))

    def counted(ctx: Any) -> dict[str, Tensor]:
        calls.append(1)
        return {n: p.abs() for n, p in ctx.parameters.items()}

    small = fxprune.prune(Literal(), counted, 0.4, example_inputs=X, progress=False)
    assert small.a.out_features == 8
    assert len(calls) == 1
