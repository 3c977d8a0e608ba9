"""A name means all groups whose channels it makes; a name that means nothing, or has no effect, is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, FxPruneError, InputsError, PlanError

X = torch.randn(2, 3, 6, 6)
STREAM = "stem.weight:0"


class Block(nn.Module):
    def __init__(self, c: int, into: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.ConvTranspose2d(12, into, 3, padding=1), nn.BatchNorm2d(into)
        self.downsample = nn.Conv2d(c, into, 1) if c != into else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.downsample(x) + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """Two stages of residual blocks; the groups of both streams are called after one tensor each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.layer1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.layer2 = nn.Sequential(Block(8, 16), Block(16, 16))
        self.fc, self.idle = nn.Linear(16, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.act(self.stem(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> fxprune.ChannelGraph:
    return fxprune.trace(Net(), X)


@pytest.fixture(scope="module")
def scores(graph: fxprune.ChannelGraph) -> dict[str, Any]:
    return {g.name: np.arange(len(g)) + 1.0 for g in graph.groups}


MEANS = {  # a name -> the groups that lose channels by it
    "stem": {STREAM},
    "layer1.0.conv1": {"layer1.0.conv1.weight:0"},
    "layer1.0.conv1.bias": {"layer1.0.conv1.weight:0"},
    "layer1.0.conv2": {STREAM},  # of a transposed convolution, axis 1 makes and axis 0 reads
    "layer1.0.conv2.weight": {STREAM},
    "layer1.1.bn2": {STREAM},
    "layer1.1.bn2.running_mean": {STREAM},
    "layer1.0": {"layer1.0.conv1.weight:0", STREAM},
    "layer1": {"layer1.0.conv1.weight:0", "layer1.1.conv1.weight:0", STREAM},
    "layer1.*": {"layer1.0.conv1.weight:0", "layer1.1.conv1.weight:0", STREAM},
    "layer?.0.conv1": {"layer1.0.conv1.weight:0", "layer2.0.conv1.weight:0"},
    STREAM: {STREAM},
}


@pytest.mark.parametrize("name", MEANS)
def test_shares_reach_every_group_that_a_name_makes(name: str, graph: fxprune.ChannelGraph, scores: Any) -> None:
    made = fxprune.plan(graph, scores, ratios={name: 0.5})
    assert {g for g, gone in made.removed.items() if gone} == MEANS[name]
    assert all(len(gone) == made.sizes[g] // 2 for g, gone in made.removed.items())


@pytest.mark.parametrize("name", MEANS)
def test_what_is_kept_by_name_stays(name: str, graph: fxprune.ChannelGraph, scores: Any) -> None:
    full = fxprune.plan(graph, scores, 0.5, scope="local")
    kept = fxprune.plan(graph, scores, 0.4, ratios={name: 0.0})
    edited = fxprune.Plan.from_json(full.to_json()).keep(name).on(graph)
    for made in (kept, edited):
        assert not {g for g, gone in made.removed.items() if gone} & MEANS[name]
    assert {g for g, gone in full.removed.items() if gone} >= MEANS[name]


def test_the_second_streams_name_is_that_of_what_makes_it(graph: fxprune.ChannelGraph, scores: Any) -> None:
    cut = {n: fxprune.plan(graph, scores, ratios={n: 0.25}).removed for n in ("layer2.0.downsample", "layer2.1.conv2")}
    assert len({tuple(sorted(removed)) for removed in cut.values()}) == 1


def test_a_closer_name_counts_before_the_order(graph: fxprune.ChannelGraph, scores: Any) -> None:
    made = fxprune.plan(graph, scores, ratios={"layer1": 0.5, "stem": 0.25})
    assert (len(made.removed[STREAM]), len(made.removed["layer1.0.conv1.weight:0"])) == (2, 6)


NOTHING = {
    "no such name": ({"layer1.0.convl": 0.5}, "'layer1.0.convl'.*no group, tensor or module.*'layer1.0.conv1"),
    "no such glob": ({"layer9.*": 0.0}, r"'layer9\.\*'"),
    "without tensors": ({"act": 0.5}, "'act'.*module with tensors"),
    "outputs": (
        {"fc": 0.5},
        r"'fc'.*makes no channels that could go.*explain.*channels of 'layer2.*to be named instead",
    ),
    "unused": ({"idle": 0.5}, "'idle'.*the traced forward does not use"),
    "two shares of one group": (
        {"layer1.0.conv2": 0.5, "layer1.1.bn2": 0.25},
        "'layer1.1.bn2': 0.25.*no effect.*'stem.weight:0'.*0.5 by 'layer1.0.conv2'",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_shares_without_effect_are_errors(case: str, graph: fxprune.ChannelGraph, scores: Any) -> None:
    ratios, text = NOTHING[case]
    with pytest.raises(BudgetError, match=text):
        fxprune.plan(graph, scores, ratios=ratios)
    with pytest.raises(BudgetError, match=text):
        fxprune.plan(graph, scores, 0.3, ratios=ratios)


def test_shares_that_cannot_count_are_errors(graph: fxprune.ChannelGraph, scores: Any) -> None:
    with pytest.raises(BudgetError, match=r'granularity="block" narrows nothing, so ratios='):
        fxprune.plan(graph, scores, 0.3, ratios={"layer1": 0.1}, granularity="block")
    with pytest.raises(BudgetError, match=r"'stem': 0.5.*'stem.weight:0', which ignore="):
        fxprune.prune(Net(), "magnitude", ratios={"stem": 0.5}, ignore="layer1.0.bn2", example_inputs=X)
    assert fxprune.plan(graph, scores, 0.3, ratios={"fc": 0.0, "idle": 0.0}).achieved == pytest.approx(0.3, abs=0.02)


def test_tied_names_mean_one_tensor() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    net[4].weight = net[2].weight
    graph = fxprune.trace(net, torch.randn(2, 3))
    scores = {g.name: np.arange(len(g)) for g in graph.groups}
    first, second = (fxprune.plan(graph, scores, ratios={n: 0.25}).removed for n in ("2", "4.weight"))
    assert first == second
    assert any(first.values())


def test_unknown_names_are_errors_wherever_names_are_taken(graph: fxprune.ChannelGraph, scores: Any) -> None:
    net, typo = Net(), "layer1.0.convl"
    given: dict[str, Any] = {"example_inputs": X, "ignore": [typo]}
    told = rf"ignore= names {typo!r}.*did you mean 'layer1\.0\.conv"
    loss = lambda m, b: m(b).sum()  # noqa: E731
    for call in (
        lambda: fxprune.prune(net, "magnitude", 0.3, **given),
        lambda: fxprune.plan(graph, scores, 0.3, ignore=typo),
        lambda: fxprune.plan(graph, scores, 0.3, limits=fxprune.Limits(ignore=typo)),
        lambda: fxprune.Pruner(net, "soft", "magnitude", 0.3, steps=8, **given),
        lambda: fxprune.sensitivity(net, "magnitude", data=[X], loss=loss, **given),
        lambda: fxprune.compare(net, ["magnitude"], [0.3], data=[X], held_out=[X], loss=loss, **given),
    ):
        with pytest.raises(InputsError, match=told):
            call()
    plan = fxprune.plan(graph, scores, 0.3)
    for call, text in (
        (lambda: plan.keep(typo), "no group is called 'layer1.0.convl'; did you mean 'layer1.0.conv1.weight:0'"),
        (lambda: plan.keep("fc"), "no group is called 'fc'"),
        (lambda: graph.group("stem.weight:1"), "did you mean 'stem.weight:0'"),
        (lambda: graph.explain(typo), "did you mean 'layer1.0.conv"),
    ):
        with pytest.raises(PlanError, match=text):
            call()


def test_names_of_groups_are_understood_by_ignore_and_explain(graph: fxprune.ChannelGraph, scores: Any) -> None:
    made = fxprune.plan(graph, scores, 0.2, ignore=STREAM)
    assert not made.removed.get(STREAM)
    assert "prunable in stem.weight:0" in graph.explain(STREAM)


def test_a_container_is_explained_tensor_by_tensor(graph: fxprune.ChannelGraph) -> None:
    inside = [t for t in graph.tensors if t.startswith("layer1.0.") and graph.shapes[t]]
    assert graph.explain("layer1.0").splitlines() == [graph.explain(t) for t in inside]
    assert len(inside) > 4


def test_a_name_that_ignore_needs_not_know_is_the_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.adapter.Adapter.protect", lambda *_: ["not.there"], raising=False)
    assert fxprune.prune(Net(), "magnitude", 0.3, example_inputs=X, progress=False).stem.out_channels <= 8


def test_every_name_of_a_module_is_taken_or_refused_with_a_reason(graph: fxprune.ChannelGraph, scores: Any) -> None:
    taken = {}
    for name in (name for name, _ in Net().named_modules() if name):
        try:
            taken[name] = any(fxprune.plan(graph, scores, ratios={name: 0.5}).removed.values())
        except FxPruneError as e:
            taken[name] = str(e).startswith(f"ratios= names {name!r}, which")
    assert all(taken.values()), taken
