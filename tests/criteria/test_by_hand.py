"""Each criterion against numbers worked out by hand, on y = Σ b_i a_i x and other nets of a few weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.criteria.activation import Activation
from fxprune.criteria.bn_scale import BnScale
from fxprune.criteria.diff_pruning import DiffPruning
from fxprune.criteria.fisher import Fisher
from fxprune.criteria.fpgm import Fpgm
from fxprune.criteria.hrank import HRank
from fxprune.criteria.lamp import Lamp
from fxprune.criteria.obs import Obs
from fxprune.criteria.snip import Snip
from fxprune.criteria.synflow import SynFlow
from fxprune.criteria.taylor import Taylor
from fxprune.criteria.wanda import Wanda
from fxprune.errors import CriterionError, InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.scoring.elementwise import Elementwise
from fxprune.scoring.score import Scores, score

A, B = [3.0, -1.0, 0.5], [1.0, 2.0, -2.0]
AB = [a * b for a, b in zip(A, B, strict=True)]  # 3, −2, −1: Σ = 0


def chain(*between: nn.Module, a: list[float] = A, b: list[float] = B) -> tuple[nn.Module, ChannelGraph]:
    net = nn.Sequential(nn.Linear(1, len(a), bias=False), *between, nn.Linear(len(b), 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(a)[:, None])  # type: ignore[operator, union-attr]
        net[-1].weight.copy_(torch.tensor(b)[None])  # type: ignore[operator, union-attr]
    return net.eval(), analyse(net, as_inputs(torch.ones(1, 1)))


def only(scores: Scores) -> list[float]:
    (values,) = scores.values.values()
    return [float(v) for v in values]


def shifted(model: nn.Module, x: Tensor) -> Tensor:
    """Mean of (y + 1)²/2: with Σ a b = 0 the gradient of sample x is x b in a, x a in b."""
    return (model(x) + 1).square().mean() / 2


X = torch.tensor([[1.0], [2.0], [-1.0]])  # mean 2/3, mean square 2


def test_per_sample_taylor() -> None:
    net, graph = chain()
    got = only(score(graph, net, Taylor(per_sample=True), data=[X], loss=shifted))
    assert got == pytest.approx([2 * 2 * p * p for p in AB])  # E[x²] (a b)², from either side
    both = score(graph, net, Taylor(per_sample=True), data=[X[:2], X[2:]], loss=shifted)
    assert only(both) == pytest.approx(got)  # however the samples are batched
    with pytest.raises(CriterionError, match=r"signed=True, per_sample=True\): a square has no sign"):
        Taylor(signed=True, per_sample=True)


def test_fisher() -> None:
    net, graph = chain()
    got = only(score(graph, net, Fisher(), data=[X], loss=shifted))
    assert got == pytest.approx([2 * p * p for p in AB])
    batched = only(score(graph, net, Fisher(per_sample=False), data=[X], loss=shifted))
    assert batched == pytest.approx([4 / 9 * p * p for p in AB])  # E[x]² in place of E[x²]


def test_fisher_is_the_hessian_of_a_well_fitted_model() -> None:
    """For L = −log p of a softmax, at the labels' own distribution, E[g²] is the diagonal of H."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [0.0]]))  # type: ignore[operator]
        net[1].weight.copy_(torch.tensor([[np.log(3.0), 0.0], [0.0, 0.0]]))  # type: ignore[operator]
    graph = analyse(net, as_inputs(torch.ones(1, 1)))
    x, y = torch.ones(4, 1), torch.tensor([0, 0, 0, 1])  # p = (3/4, 1/4), as the net says
    got = score(graph, net, Fisher(), data=[(x, y)], loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])).values
    # d²L/dw² = p (1 − p) for the logit's own weight (log 3); the first layer's weight moves it log 3 times as much
    assert got["0.weight:0"][0] == pytest.approx(2 * 0.5 * np.log(3.0) ** 2 * 3 / 16, rel=1e-5)


def test_snip() -> None:
    net, graph = chain()
    got = only(score(graph, net, Snip(), data=[X], loss=shifted))
    assert got == pytest.approx([3 / 6, 2 / 6, 1 / 6])  # shares of Σ|a b|


@pytest.mark.parametrize("between", [nn.ReLU(), nn.SiLU(), nn.Tanh(), nn.Dropout(0.5)])
def test_synflow_passes_activations_by(between: nn.Module) -> None:
    net, graph = chain(between)
    assert only(score(graph, net, SynFlow())) == pytest.approx([2 * abs(p) for p in AB])


def test_synflow_of_a_residual_norm_and_attention() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.qkv, self.out = nn.Linear(2, 4, bias=False), nn.Linear(4, 12), nn.Linear(4, 2)
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            return self.out(x + F.scaled_dot_product_attention(q, k, v))

    net = Block()
    graph = analyse(net, as_inputs(torch.randn(1, 3, 2)))
    found: dict[str, Tensor] = {}

    def keep(ctx: Any) -> dict[str, Tensor]:
        found.update(SynFlow()(ctx))
        return found

    score(graph, net, keep)
    assert all((s >= 0).all() for s in found.values())
    assert found["qkv.weight"][:8].eq(0).all()  # queries and keys
    assert found["qkv.weight"][8:].gt(0).all()
    total = {n: float(s.sum()) for n, s in found.items()}
    # what leaves by the last layer came in by the first, or by a bias on the way; three tokens read the last bias
    assert total["out.weight"] == pytest.approx(total["enter.weight"] + total["norm.bias"] + total["qkv.bias"])
    assert total["norm.weight"] + total["norm.bias"] == pytest.approx(total["qkv.weight"])
    assert total["out.bias"] == pytest.approx(3 * float(net.out.bias.detach().abs().sum()))


def test_synflow_passes_complex_weights_by() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)
            self.turn = nn.Parameter(torch.full((3,), 0.6 + 0.8j))

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.a(x) * self.turn).abs())

    net = Turn()
    graph = analyse(net, as_inputs(torch.ones(1, 1)))
    a, b = net.a.weight.detach().flatten(), net.b.weight.detach().flatten()
    assert only(score(graph, net, SynFlow())) == pytest.approx((2 * a * b).abs().tolist())


def test_synflow_refuses_what_it_cannot_run() -> None:
    net, graph = chain()
    with torch.no_grad():
        net[0].weight[0] = torch.inf  # type: ignore[index, operator, union-attr]
    with pytest.raises(CriterionError, match="the flow through this Sequential is inf; use another criterion"):
        score(graph, net, SynFlow())


def test_wanda() -> None:
    net, graph = chain()
    root = np.sqrt(2)  # √E[x²], and √E[(a x)²] = |a| √2
    got = only(score(graph, net, Wanda(), data=[X], normalize="none", reduce="sum"))
    assert got == pytest.approx([root * (abs(a) + abs(p)) for a, p in zip(A, AB, strict=True)])
    mean = score(graph, net, Wanda(), data=[X[:1], X[1:]])  # two batches of different sizes count by their samples
    assert only(mean) == pytest.approx(list(np.array(got) / np.mean(got)))


def test_wanda_of_a_grouped_convolution() -> None:
    """Rows of group k meet the channels of group k."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 4, 1, groups=2, bias=False), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None])  # type: ignore[operator]
        net[1].weight.fill_(1.0)  # type: ignore[operator]
    graph = analyse(net, as_inputs(torch.ones(1, 1, 2, 2)))
    seen: dict[str, Elementwise] = {}
    score(graph, net, lambda ctx: seen.update(Wanda()(ctx)) or seen, data=[torch.ones(2, 1, 2, 2)])  # type: ignore[func-returns-value]
    torch.testing.assert_close(seen["1.weight"].fold([]).flatten(1), torch.tensor([[1.0, 2], [1, 2], [3, 4], [3, 4]]))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (Activation("mean"), [3 * 4 / 3, 4 / 3, 2 / 3]),  # |a| E|x|
        (Activation("l2"), [3 * 2**0.5, 2**0.5, 0.5 * 2**0.5]),
        (Activation("apoz"), [2 / 3, 1 / 3, 2 / 3]),
        (Activation("mean", at="read"), [3 * 1.0, 1 / 3, 0.5 * 1.0]),  # behind the ReLU
        (Activation("apoz", at="read"), [2 / 3, 1 / 3, 2 / 3]),
    ],
)
def test_activation(criterion: Activation, expected: list[float]) -> None:
    net, graph = chain(nn.ReLU())
    assert only(score(graph, net, criterion, data=[X], normalize="none")) == pytest.approx(expected)


def test_bn_scale_takes_every_norm_and_leaves_the_rest_for_last() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1)
    ).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([-2.0, 0.5]))  # type: ignore[operator]
        net[2].weight.copy_(torch.tensor([4.0, -0.5]))  # type: ignore[operator]
    scores = score(analyse(net, as_inputs(torch.ones(1, 1, 4, 4))), net, BnScale())
    assert scores.values["0.weight:0"].tolist() == [3.0, 0.5]
    assert scores.values["3.weight:0"].tolist() == [3.0] * 3
    assert scores.unscored == ("3.weight:0",)
    assert "last, for want of a score: 3.weight:0" in repr(scores)
    assert Scores.from_json(scores.to_json()).unscored == ("3.weight:0",)
    net, graph = chain()
    with pytest.raises(CriterionError, match="'bn_scale' has nothing to say about any channel of this Sequential"):
        score(graph, net, "bn_scale")


def test_lamp() -> None:
    net, graph = chain(a=[3.0, 1.0, 1.0, 0.0], b=[1.0, 1.0, 1.0, 0.0])
    assert only(score(graph, net, Lamp())) == pytest.approx([1.0, 2 / 14, 2 / 14, 0.0])  # squares 10, 2, 2, 0


def test_fpgm() -> None:
    net, graph = chain(a=[0.0, 3.0, 6.0, 3.0], b=[0.0, 4.0, 8.0, 4.0])
    assert only(score(graph, net, Fpgm())) == pytest.approx([4 / 3, 2 / 3, 4 / 3, 2 / 3], rel=1e-5)  # 20, 10, 20, 10


def test_hrank() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 1, 1))
    nn.init.dirac_(net[0].weight)  # type: ignore[arg-type]
    maps = torch.stack([torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0])), torch.zeros(4, 4), torch.ones(4, 4)])[None]
    graph = analyse(net, as_inputs(maps))
    given: dict[str, Any] = {"data": [maps], "normalize": "none"}
    assert only(score(graph, net, HRank(exact=True), **given)) == [2.0, 0.0, 1.0]
    assert only(score(graph, net, HRank(), **given)) == pytest.approx([25 / 17, 0.0, 1.0])  # (4 + 1)² / (16 + 1)
    assert only(score(graph, net, HRank(), data=[maps[..., :2, :]], normalize="none"))[2] == pytest.approx(1.0)


@pytest.mark.parametrize(("threshold", "weight"), [(0.5, 1.0), (0.2, (1 + 1 / 4) / 2), (0.0, (1 + 1 / 4 + 1 / 16) / 3)])
def test_diff_pruning(threshold: float, weight: float) -> None:
    """Losses and gradients go with x²: as 1 to 1/4 to 1/16 to 0; `weight` is the mean of x² over those that count."""
    net, graph = chain(b=[1.0, 2.0, 2.0])  # s = Σ a b = 2
    data = [torch.tensor([[1.0], [0.5]]), torch.tensor([[0.25], [0.0]])]

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean() / 2  # = x² s²/2, ∂/∂a = x² s b

    got = only(score(graph, net, DiffPruning(threshold), data=data, loss=loss))
    assert got == pytest.approx([2 * weight * 2 * abs(a * b) for a, b in zip(A, [1.0, 2.0, 2.0], strict=True)])


def test_diff_pruning_by_batch_and_its_refusals() -> None:
    net, graph = chain(b=[1.0, 2.0, 2.0])
    data = [torch.full((2, 1), 1.0), torch.full((2, 1), 0.1)]
    given: dict[str, Any] = {"loss": lambda m, x: m(x).square().mean() / 2}
    both = only(score(graph, net, DiffPruning(per_sample=False), data=data, **given))
    assert both == pytest.approx(only(score(graph, net, Taylor(), data=data[:1], **given)))
    with pytest.raises(CriterionError, match=r"threshold=1\): a share in \[0, 1\)"):
        DiffPruning(threshold=1)
    with pytest.raises(CriterionError, match="no timestep has a loss above zero"):
        score(graph, net, DiffPruning(), data=data, loss=lambda m, x: 0 * m(x).sum())
    with pytest.raises(InputsError, match=r"takes batches apart, and batch 0 \(a int\) has no tensor"):
        score(graph, net, DiffPruning(), data=[1], loss=lambda m, x: m(torch.ones(1, 1)).sum())


def test_obs_by_the_definition() -> None:
    """score(c) = w_c² / [H⁻¹]_cc for two rows of a reader; two inputs of which one can stand for the other."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    graph = analyse(net, as_inputs(torch.ones(1, 2)))
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    seen = (x @ net[0].weight.T).double().detach()  # type: ignore[operator, union-attr]
    h = seen.T @ seen / len(seen)
    h += 0.1 * h.diagonal().mean() * torch.eye(3)
    w = net[1].weight.double().detach()  # type: ignore[operator, union-attr]
    expected = w.square().sum(0) / torch.linalg.inv(h).diagonal()
    got = only(score(graph, net, Obs(damping=0.1), data=[x[:20], x[20:]], normalize="none"))
    assert got == pytest.approx(expected.tolist(), rel=1e-4)
    with pytest.raises(CriterionError, match=r"damping=0\): must be positive"):
        Obs(damping=0)
