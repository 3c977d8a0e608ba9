"""A layer that ends a branch makes up for what the stream it is added to has lost before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.criteria.obs import Obs
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.planning.plan import Plan
from fxprune.rewriting.compensation import compensated
from fxprune.scoring.observation import Call, Observer
from fxprune.verification import check_dense


class Residual(nn.Module):
    """Two branches on a stream, one after the other or side by side; `scale` is of the second."""

    def __init__(self, beside: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)
        self.c, self.d = nn.Linear(6, 12), nn.Linear(12, 6)
        self.beside, self.scale = beside, scale

    def forward(self, x: Tensor) -> Tensor:
        first = x + self.b(torch.tanh(self.a(x)))
        second = self.d(torch.tanh(self.c(x if self.beside else first)))
        return second + first if self.scale == 1.0 else self.scale * second + first  # type: ignore[no-any-return]


def pruned(net: nn.Module, x: Tensor, gone: dict[str, tuple[int, ...]]) -> tuple[nn.Module, nn.Module, Plan]:
    """The corrected model of full size, the dense one, the plan."""
    graph = analyse(net, as_inputs(x))
    plan = fxprune.plan(graph, {g.name: np.arange(float(len(g))) for g in graph.groups}, 0.0)
    plan = replace(plan, removed=gone)
    fixed = compensated(graph, net, plan, Obs(weigh=False, damping=1e-12), data=[x[:40], x[40:]])
    small = fxprune.rewrite(fixed, graph, plan).model
    assert check_dense(fixed, small, graph, plan).ok
    return fixed, small, plan


@torch.no_grad()
@pytest.mark.parametrize("beside", [False, True])
def test_the_second_branch_is_fitted_to_what_the_stream_lacks(beside: bool) -> None:
    """Side by side its input is what it was, and it loses nothing of its own."""
    torch.manual_seed(0)
    net, x = Residual(beside), torch.randn(100, 6)
    fixed, small, _ = pruned(net, x, {"a.weight:0": (0, 1, 2, 3, 4, 5)})
    stream = x + small.b(torch.tanh(small.a(x)))
    inside = torch.tanh(small.c(x if beside else stream))
    rows = np.concatenate([inside.double().numpy(), np.ones((len(x), 1))], 1)
    best = np.linalg.lstsq(rows, (net(x) - stream).double().numpy(), rcond=None)[0]
    torch.testing.assert_close(fixed.d.weight.double().T.numpy(), best[:-1], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(fixed.d.bias.double().numpy(), best[-1], rtol=1e-2, atol=1e-3)
    own = np.linalg.lstsq(
        rows, net.d(torch.tanh(net.c(x if beside else x + net.b(torch.tanh(net.a(x)))))).numpy(), rcond=None
    )
    left = (rows @ own[0] - (net(x) - stream).numpy()) ** 2
    assert float((small(x) - net(x)).square().sum()) < 0.8 * left.sum()


@torch.no_grad()
def test_a_branch_that_is_scaled_first_is_fitted_to_itself() -> None:
    torch.manual_seed(0)
    net, x = Residual(scale=0.5), torch.randn(100, 6)
    fixed, small, _ = pruned(net, x, {"a.weight:0": (0, 1, 2)})
    rows = np.concatenate([torch.tanh(small.c(x + small.b(torch.tanh(small.a(x))))), np.ones((len(x), 1))], 1)
    wanted = net.d(torch.tanh(net.c(x + net.b(torch.tanh(net.a(x))))))
    best = np.linalg.lstsq(rows, wanted.numpy(), rcond=None)[0]
    torch.testing.assert_close(fixed.d.weight.T.numpy(), best[:-1].astype("float32"), rtol=1e-2, atol=1e-3)


class Convolutions(nn.Module):
    """A stream that is narrowed itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
        self.b, self.c = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.tanh(self.b(x)) + x
        x = x + self.c(torch.tanh(x))
        return self.d(torch.tanh(x))  # type: ignore[no-any-return]


@torch.no_grad()
def test_of_a_narrowed_stream_the_channels_that_stay_are_compared() -> None:
    torch.manual_seed(0)
    net, x = Convolutions(), torch.randn(100, 6, 5, 5)
    name = next(g.name for g in analyse(net, as_inputs(x)).groups)
    fixed, small, _ = pruned(net, x, {name: (1, 4)})
    kept = [0, 2, 3, 5]
    ours, theirs = (m.a(x) + torch.tanh(m.b(m.a(x))) for m in (small, net))
    missing = (theirs + net.c(torch.tanh(theirs)))[:, kept] - ours
    inside = F.unfold(torch.tanh(ours), 3, padding=1).transpose(1, 2).flatten(0, 1)
    rows = np.concatenate([inside.double().numpy(), np.ones((len(inside), 1))], 1)
    best = np.linalg.lstsq(rows, missing.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy(), rcond=None)[0]
    found = fixed.c.weight[kept][:, kept].flatten(1).T.numpy()
    np.testing.assert_allclose(found, best[:-1], rtol=1e-2, atol=2e-3)


# ---- what is told of additions --------------------------------------------------------------------------------------


def told(net: nn.Module, *inputs: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """For every addition the weight, its output, and what was added to it."""
    found: list[tuple[str, Tensor, Tensor]] = []

    def added(call: Call, other: Tensor) -> None:
        found.append((call.weight, call.output.clone(), other.clone()))

    with torch.no_grad(), Observer(dict(net.named_parameters()), lambda call: None, added):
        net(*inputs)
    return found


def test_the_other_summand_is_laid_out_like_the_output() -> None:
    """The output (3, 2, 4), as rows (6, 4), is turned before it is added."""
    torch.manual_seed(0)
    layer, other = nn.Linear(4, 4), torch.randn(2, 3, 4)
    for forward in (
        lambda x: layer(x).transpose(0, 1) + other,
        lambda x: other + layer(x).transpose(0, 1),
        lambda x: other.clone().add_(layer(x).transpose(0, 1)),
    ):
        ((name, out, beside),) = told(_Runs(layer, forward), torch.randn(3, 2, 4))
        assert name == "layer.weight"
        assert out.shape == (6, 4)
        torch.testing.assert_close(beside, other.transpose(0, 1).reshape(6, 4))


def test_what_is_no_plain_sum_is_not_told() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    for forward in (
        lambda x: 2 * layer(x) + x,
        lambda x: layer(x).mul_(2) + x,
        lambda x: torch.add(x, layer(x), alpha=2),
        lambda x: layer(x) + torch.randn(4),
        lambda x: layer(x)[:, :2] + x[:, :2],
        lambda x: layer(x)[:1].expand(3, 4) + x,
        lambda x: torch.relu(layer(x)) + x,
    ):
        assert told(_Runs(layer, forward), x) == []


class _Runs(nn.Module):
    def __init__(self, layer: nn.Module, forward) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.layer, self.does = layer, forward

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)  # type: ignore[no-any-return]


# ---- too little data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "told"), [(7, True), (40, False)])
def test_layers_that_saw_fewer_samples_than_columns_are_told(samples: int, told: bool) -> None:
    torch.manual_seed(0)
    net, x = Residual(), torch.randn(samples, 6)
    small = fxprune.prune(net, Obs(), 0.3, data=[x], example_inputs=x[:2], progress=False)
    found = [note for note in fxprune.report(small).scoring if "fewer samples than they have columns" in note]
    assert len(found) == told
    if told:
        assert "give data= more of them" in found[0]
        assert found[0] in str(fxprune.report(small))
