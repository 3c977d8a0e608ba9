"""Weights that make up for what goes: the algebra, the use in `prune`, and what is said of a bad `compensate`."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.criteria.obs import Obs
from fxprune.errors import CriterionError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.planning.plan import Plan
from fxprune.rewriting.compensation import compensated
from fxprune.scoring.score import score
from fxprune.verification import check_dense


def removing(graph: ChannelGraph, **channels: tuple[int, ...]) -> Plan:
    """A plan that removes some channels of the groups whose names begin so."""
    empty = fxprune.plan(graph, {g.name: np.arange(float(len(g))) for g in graph.groups}, 0.0)
    return replace(empty, removed={g.name: channels[g.name[0]] for g in graph.groups if g.name[0] in channels})


class Net(nn.Module):
    """A convolution, a grouped one, a transposed one and a linear layer as readers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 1, bias=False), nn.Conv2d(6, 8, 3, padding=1)
        self.c, self.d = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(6, 6, 3, groups=2)
        self.e = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.silu(self.b(self.a(x))))
        return self.e(F.silu(self.d(torch.tanh(x))).mean((2, 3)))


def made() -> tuple[nn.Module, ChannelGraph, list[Tensor]]:
    torch.manual_seed(0)
    net = Net().eval()
    data = [torch.randn(4, 2, 5, 5) for _ in range(3)]
    return net, analyse(net, as_inputs(data[0][:2])), data


def error(net: nn.Module, small: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float((small(x) - net(x)).square().mean()) for x in data)


def test_a_channel_that_others_can_stand_for_is_lost_without_loss() -> None:
    """Six channels from two: any two independent ones give the other four."""
    net, graph, data = made()
    plan = removing(graph, a=(0, 2, 3, 5))
    net.b.weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    plain = fxprune.rewrite(net, graph, plan).model
    fixed = compensated(graph, net, plan, Obs(damping=1e-9), data=data)
    small = fxprune.rewrite(fixed, graph, plan).model
    assert error(net, small, data) < 1e-4 * error(net, plain, data)
    assert check_dense(fixed, small, graph, plan).ok
    assert [p.requires_grad for p in fixed.b.parameters()] == [False, True]  # type: ignore[union-attr]
    assert not torch.equal(fixed.b.weight, net.b.weight)  # type: ignore[arg-type, union-attr]
    assert torch.equal(fixed.c.weight, net.c.weight)  # type: ignore[arg-type, union-attr]


def test_the_correction_is_the_least_squares_one() -> None:
    """Of a linear reader, against numpy's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    x = torch.randn(40, 5)
    graph = analyse(net, as_inputs(x))
    plan = removing(graph, **{"0": (1, 4)})
    fixed = compensated(graph, net, plan, Obs(damping=1e-12), data=[x])
    with torch.no_grad():
        inside = net[:2](x).double().numpy()  # type: ignore[index, operator]
        wanted = net(x).double().numpy()
    kept = [0, 2, 3, 5]
    best = np.linalg.lstsq(inside[:, kept], wanted, rcond=None)[0].T
    np.testing.assert_allclose(fixed[2].weight.detach().numpy()[:, kept], best, rtol=1e-3, atol=1e-5)  # type: ignore[index, union-attr]


def test_scores_are_the_error_after_the_correction() -> None:
    """Removing one channel and correcting costs exactly its score, in the reader's squared output."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    x = torch.randn(40, 5)
    graph = analyse(net, as_inputs(x))
    scores = score(graph, net, Obs(damping=1e-12), data=[x], normalize="none").values["0.weight:0"]
    for c in range(6):
        plan = removing(graph, **{"0": (c,)})
        small = fxprune.rewrite(compensated(graph, net, plan, Obs(damping=1e-12), data=[x]), graph, plan).model
        with torch.no_grad():
            assert float((small(x) - net(x)).square().sum(1).mean()) == pytest.approx(scores[c], rel=1e-3)


@pytest.mark.parametrize("group", ["b", "c", "d"])
def test_every_kind_of_reader_is_corrected(group: str) -> None:
    net, graph, data = made()
    size = next(len(g) for g in graph.groups if g.name[0] == group)
    plan = removing(graph, **{group: (0,) if size < 4 else (0, size // 2)})
    plain = fxprune.rewrite(net, graph, plan).model
    fixed = compensated(graph, net, plan, Obs(), data=data)
    small = fxprune.rewrite(fixed, graph, plan).model
    assert error(net, small, data) < 0.9 * error(net, plain, data)
    assert check_dense(fixed, small, graph, plan).ok


def test_prune_corrects_and_proves_it_and_leaves_the_model_alone() -> None:
    net, _, data = made()
    state = copy.deepcopy(net.state_dict())
    options: dict[str, Any] = {"example_inputs": data[0][:2], "data": data, "progress": False}
    small = fxprune.prune(net, "obs", 0.4, **options)
    assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())
    assert fxprune.report(small).checks[0].ok

    def same_scores(ctx: Any) -> Any:
        return Obs()(ctx)

    same_scores.needs, same_scores.normalization = Obs.needs, "mean"  # type: ignore[attr-defined]
    plain = fxprune.prune(net, same_scores, 0.4, **options)
    assert fxprune.report(plain).plan.removed == fxprune.report(small).plan.removed
    assert error(net, small, data) < error(net, plain, data)
    again = copy.deepcopy(net)
    fxprune.prune(again, "obs", 0.4, inplace=True, **options)
    assert error(small, again, data) == 0


def test_a_table_that_is_also_looked_up_stays_as_it_is() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
            self.out.weight = self.table.weight

        def forward(self, i: Tensor) -> Tensor:
            return self.out(torch.tanh(self.table(i)))

    torch.manual_seed(0)
    net, i = Tied(), torch.arange(7)[None]
    graph = analyse(net, as_inputs(i))
    fixed = compensated(graph, net, removing(graph, t=(0, 1)), Obs(), data=[i])
    assert torch.equal(fixed.table.weight, net.table.weight)  # type: ignore[arg-type, union-attr]


class Bad(Obs):
    answer: Any = None

    def compensate(self, ctx: Any, plan: Plan) -> Any:
        return type(self).answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"'Bad\(damping=0.01.*\)': compensate\(\) returned a NoneType; return {tensor: new values}"),
        ({"nope": torch.ones(1)}, "compensate\\(\\) returned 'nope', which is no tensor of the graph"),
        ({"e.weight": torch.ones(1)}, r"returned e.weight of shape \(1,\).* before pruning, \(2, 6\)"),
        ({"e.weight": torch.full((2, 6), torch.nan)}, "or with NaN; return finite values"),
    ],
)
def test_a_bad_compensation_is_named(answer: Any, message: str) -> None:
    net, graph, data = made()
    Bad.answer = answer
    with pytest.raises(CriterionError, match=message):
        compensated(graph, net, removing(graph, a=(0,)), Bad(), data=data)
