"""gradflow weighs what a cut costs against what it takes from the flow: numbers worked out by hand, and its limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.criteria.gradflow import GradFlow
from fxprune.criteria.gradflow_preserving import GradFlowPreserving
from fxprune.criteria.taylor import Taylor
from fxprune.errors import CriterionError, InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.scoring.context import Context
from fxprune.scoring.score import Scores, score

A = [3.0, -1.0, 0.5]
Q = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1.0]])
METHODS = ("exact", "finite_difference")


def quadratic(net: nn.Module, scale: Any) -> Tensor:
    """L = s θᵀQθ/2 over the first layer: g = s Qθ, H = s Q."""
    theta = net[0].weight[:, 0]  # type: ignore[index]
    return scale * (theta @ Q @ theta) / 2


def chain() -> tuple[nn.Module, ChannelGraph]:
    net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(A)[:, None])
        net[1].weight.fill_(0.25)
    return net, analyse(net, as_inputs(torch.ones(1, 1)))


def only(scores: Scores) -> list[float]:
    (values,) = scores.values.values()
    return values.tolist()


def by_hand(q: Tensor, horizon: float, power: float) -> tuple[list[float], float]:
    """U ((|θ g| + k T* |θ (H g)|) / U)^power and T*, in double precision; the reader's weights, 0.25, count in ‖θ‖."""
    q = q.double()
    theta = torch.tensor(A, dtype=torch.float64)
    g, h = q @ theta, q @ q @ theta
    step = float(g @ g / abs(g @ h))
    unit = float((theta.square().sum() + 3 * 0.25**2).sqrt() * g.norm())
    effect = (theta * g).abs() + horizon * step * (theta * h).abs()
    return (unit * (effect / unit) ** power).tolist(), step


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("horizon", [1.0, 3.0])
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_both_terms_and_the_step_by_hand(method: Any, horizon: float, power: float) -> None:
    net, graph = chain()
    expected, step = by_hand(Q, horizon, power)
    got = only(score(graph, net, GradFlow(method, horizon=horizon, power=power), data=[1.0], loss=quadratic))
    assert got == pytest.approx(expected, rel=1e-5 if method == "exact" else 1e-2)
    ctx = Context(graph, net, "gradflow", [1.0], quadratic)
    assert ctx.curvature(method).step == pytest.approx(step, rel=1e-5 if method == "exact" else 1e-2)


def test_the_step_is_where_a_line_search_along_the_flow_ends() -> None:
    """On a quadratic no other step from the same point has a lower loss."""
    net, graph = chain()
    found = Context(graph, net, "gradflow", [1.0], quadratic).curvature("exact")

    def after(step: float) -> float:
        theta = torch.tensor(A, dtype=torch.float64) - step * found.gradient["0.weight"][:, 0].double()
        return float(theta @ Q.double() @ theta / 2)

    at = after(found.step)
    assert at < min(after(0.9 * found.step), after(1.1 * found.step), after(0.0))


@pytest.mark.parametrize("method", METHODS)
def test_batches_share_one_gradient_and_one_step(method: Any) -> None:
    """The mean of s is 2 over the batches: as one batch of s = 2, though H_b g_b would be another mean."""
    net, graph = chain()
    several = only(score(graph, net, GradFlow(method), data=[1.0, 3.0], loss=quadratic))
    one = only(score(graph, net, GradFlow(method), data=[2.0], loss=quadratic))
    assert several == pytest.approx(one, rel=1e-5 if method == "exact" else 1e-2)


@pytest.mark.parametrize("scale", [1e-15, 10.0])
def test_scores_are_in_units_of_the_loss(scale: float) -> None:
    """However small it is."""
    net, graph = chain()
    once = only(score(graph, net, GradFlow("exact"), data=[1.0], loss=quadratic))
    scaled = only(score(graph, net, GradFlow("exact"), data=[scale], loss=quadratic))
    assert scaled == pytest.approx([scale * v for v in once], rel=1e-5)


def test_weights_that_are_all_zero_have_no_score_to_speak_of() -> None:
    net, graph = chain()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    found = score(graph, net, GradFlow(), data=[None], loss=lambda m, _: m[0].weight.sum() + m[0].weight.square().sum())
    assert only(found) == [0.0, 0.0, 0.0]


def small() -> tuple[nn.Module, ChannelGraph, dict[str, Any]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    data = [torch.randn(5, 4) for _ in range(2)]
    return net, analyse(net, as_inputs(data[0][:1])), {"data": data, "loss": lambda m, b: (m(b) - 1).square().mean()}


def test_no_horizon_is_taylor_bit_for_bit_and_costs_no_second_pass() -> None:
    net, graph, given = small()
    memo: dict[Any, Any] = {}
    nothing = score(graph, net, GradFlow(horizon=0, power=1), reuse=memo, **given)
    assert nothing.values.keys() == score(graph, net, Taylor(), **given).values.keys()
    for name, v in score(graph, net, Taylor(), **given).values.items():
        assert np.array_equal(nothing.values[name], v)
    assert not any(key[0] == "H g" for key in memo if isinstance(key, tuple))


def test_an_endless_horizon_is_preserving_and_a_long_one_ranks_as_it() -> None:
    net, graph, given = small()
    preserving = score(graph, net, GradFlowPreserving("exact"), **given).values
    endless = score(graph, net, GradFlow("exact", horizon=math.inf, power=1), **given).values
    long = score(graph, net, GradFlow("exact", horizon=1e6, power=1), **given).values
    here = score(graph, net, GradFlow("exact", power=1), **given).values
    flat = np.concatenate(list(preserving.values()))
    assert np.array_equal(np.concatenate(list(endless.values())), flat)
    assert np.array_equal(np.argsort(np.concatenate(list(long.values()))), np.argsort(flat))
    assert not np.array_equal(np.argsort(np.concatenate(list(here.values()))), np.argsort(flat))


def test_scores_lie_between_their_limits_and_add_up() -> None:
    net, graph, given = small()
    ends = [score(graph, net, GradFlow("exact", horizon=k, power=1), **given) for k in (0.0, 1.0, 2.0)]
    assert all(s.additive for s in ends)
    for name, none in ends[0].values.items():
        one, two = (s.values[name] for s in ends[1:])
        assert (none < one).all()
        assert two - one == pytest.approx(one - none, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_at_a_saddle_the_step_is_where_the_slope_has_doubled(method: Any) -> None:
    """L = −θᵀQθ/2 has gᵀHg < 0: the same |θg| and |θ(Hg)|, the same length of step, and the report says so."""
    net, graph = chain()
    up, down = (score(graph, net, GradFlow(method), data=[s], loss=quadratic) for s in (1.0, -1.0))
    assert only(down) == pytest.approx(only(up), rel=1e-2)
    assert any("curves down along its gradient" in note for note in down.notes)
    assert not any("curves down" in note for note in up.notes)


def test_the_order_has_no_jump_where_the_curvature_changes_sign() -> None:
    """θ = (1, 1), L = (θ₁² + c θ₂²)/2 … at c = −1 ± δ: gᵀHg = 1 + c³ changes sign, the scores hardly."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    graph = analyse(net, as_inputs(torch.ones(1, 1)))

    def loss(model: nn.Module, c: float) -> Tensor:
        first = model[0].weight[:, 0]  # type: ignore[index]
        return (first[0].square() + c * first[1].square()) / 2

    sides = [only(score(graph, net, GradFlow("exact"), data=[c], loss=loss)) for c in (-1.001, -0.999)]
    assert sides[0] == pytest.approx(sides[1], rel=1e-2)
    assert Context(graph, net, "", [-1.0], loss).curvature("exact").step == pytest.approx(10.0)  # 10 ‖g‖ / ‖H g‖


def test_a_zero_gradient_is_an_error_that_says_so() -> None:
    net, graph = chain()
    for criterion in (GradFlow(), GradFlow("finite_difference"), GradFlow(horizon=0), GradFlowPreserving()):
        with pytest.raises(InputsError, match=r"gradient of the loss is zero .* use criterion='magnitude'"):
            score(graph, net, criterion, data=[0.0], loss=quadratic)


def test_the_literal_form_keeps_its_sign() -> None:
    net, graph = chain()
    theta = torch.tensor(A)
    literal = only(score(graph, net, GradFlow("exact", form="literal"), data=[1.0], loss=quadratic))
    assert literal == pytest.approx((theta * (Q @ Q @ theta)).tolist(), rel=1e-5)
    assert min(literal) < 0


def test_options_out_of_range_are_refused() -> None:
    for options, message in (
        ({"horizon": -1.0}, r"horizon=-1.0\): pass a number"),
        ({"horizon": math.nan}, r"horizon=nan\): horizon must be a number"),
        ({"form": "signed"}, r"form='signed'\): use one of 'weighed', 'literal'"),
        ({"form": "literal", "horizon": 3.0}, "that form has no horizon"),
        ({"form": "literal", "power": 1.0}, "that form has no power"),
        ({"power": 0.5}, r"power=0.5\): pass a number of 1 or more"),
        ({"power": math.inf}, r"power=inf\): pass a number of 1 or more"),
    ):
        with pytest.raises(CriterionError, match=message):
            GradFlow(**options)  # type: ignore[arg-type]
