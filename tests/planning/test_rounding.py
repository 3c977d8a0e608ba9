"""round_to: multiples that hold through norms, and the one that "auto" takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.planning.rounding import fast_widths


@pytest.fixture(params=["AVX512", "AVX2", "DEFAULT"])
def least(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """On a CPU of each kind, the narrowest width that it runs fast."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return min(fast_widths(torch.device("cpu"), torch.float32))


def graph_of(width: int) -> fxprune.ChannelGraph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.GroupNorm(8, width),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * width, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.Conv2d(width, 3, 1),
    )
    return fxprune.trace(net, torch.randn(1, 3, 8, 8))


def random_scores(graph: fxprune.ChannelGraph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {g.name: rng.random(len(g)) for g in graph.groups}


def widths(plan: fxprune.Plan) -> list[int]:
    return [n - len(plan.removed.get(name, ())) for name, n in plan.sizes.items()]


@pytest.mark.parametrize("multiple", [4, 16, 32])
def test_widths_under_norms_are_multiples_too(multiple: int) -> None:
    graph = graph_of(128)
    plan = fxprune.plan(graph, random_scores(graph), 0.4, round_to=multiple)
    assert plan.removed
    assert all(w % multiple == 0 for w in widths(plan)), widths(plan)


@pytest.mark.parametrize("of", ["params", "macs"])
def test_auto_rounds_wide_layers_and_stays_on_budget(of: str, least: int) -> None:
    graph = graph_of(512)
    scores = random_scores(graph)
    plan = fxprune.plan(graph, scores, 0.5, of, round_to="auto")
    assert all(w % least == 0 for w in widths(plan)), widths(plan)
    assert abs(plan.achieved - 0.5) < 0.02


def test_auto_leaves_narrow_layers_alone(least: int) -> None:
    graph = graph_of(8)
    scores = random_scores(graph)
    assert fxprune.plan(graph, scores, 0.3, round_to="auto") == fxprune.plan(graph, scores, 0.3)


def test_auto_does_not_give_up_scores_for_round_widths(least: int) -> None:
    graph = graph_of(64)
    scores = {g.name: np.arange(len(g)) * 1.0 for g in graph.groups}

    def kept(plan: fxprune.Plan) -> float:
        return sum(float(np.delete(scores[k], list(c)).sum()) for k, c in plan.removed.items())

    plain, auto, coarse = (fxprune.plan(graph, scores, 0.3, round_to=q) for q in (1, "auto", 64))
    assert kept(auto) >= 0.98 * kept(plain)
    assert kept(coarse) < 0.98 * kept(plain)


def test_fast_widths_follow_device_and_number_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert fast_widths(torch.device("cpu"), torch.float32) == (64, 32, 16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert fast_widths(torch.device("cpu"), torch.float32) == (32, 16, 8)
    assert fast_widths(torch.device("cpu"), torch.bfloat16) == (64, 32, 16)
    assert fast_widths(torch.device("cuda"), torch.bfloat16) == (64, 32, 16, 8)


@pytest.mark.parametrize("value", [0, -8, "fast"])
def test_no_such_multiple(value: int | str) -> None:
    graph = graph_of(16)
    with pytest.raises(fxprune.BudgetError, match='must be at least 1, or "auto"'):
        fxprune.plan(graph, random_scores(graph), 0.3, round_to=value)


@pytest.mark.parametrize("how", [{}, {"scheduler": "soft", "steps": 20}], ids=["one-shot", "soft"])
def test_prune_takes_auto(how: dict[str, object], least: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 512, 1), nn.ReLU(), nn.Conv2d(512, 512, 1), nn.ReLU(), nn.Conv2d(512, 3, 1))
    image = torch.randn(1, 3, 4, 4)
    more = {"data": [image] * 20, "loss": lambda m, x: m(x).square().mean()} | how
    small = fxprune.prune(net, "magnitude", 0.5, round_to="auto", example_inputs=image, progress=False, **more)
    assert small[0].out_channels < 512
    assert small[0].out_channels % least == small[2].out_channels % least == 0
