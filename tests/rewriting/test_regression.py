"""Weights corrected one after the other: each by least squares on what the pruned part before it gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_nets import model
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.criteria.obs import Obs
from fxprune.errors import CriterionError, InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.planning.plan import Plan
from fxprune.rewriting import correction, regression
from fxprune.rewriting.compensation import compensated
from fxprune.scoring.context import Context
from fxprune.verification import check_dense


def removing(graph: ChannelGraph, **channels: tuple[int, ...]) -> Plan:
    """A plan that removes some channels of the groups whose names begin so."""
    empty = fxprune.plan(graph, {g.name: np.arange(float(len(g))) for g in graph.groups}, 0.0)
    return replace(empty, removed={g.name: channels[g.name[0]] for g in graph.groups if g.name[0] in channels})


def made() -> tuple[nn.Module, ChannelGraph, list[Tensor]]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 1), nn.SiLU(), nn.Conv2d(6, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 2, 3)]
    net, data = nn.Sequential(*layers).eval(), [torch.randn(4, 2, 5, 5) for _ in range(3)]
    return net, analyse(net, as_inputs(data[0][:2])), data


@torch.no_grad()
def error(net: nn.Module, small: nn.Module, data: list[Tensor]) -> float:
    return sum(float((small(x) - net(x)).square().mean()) for x in data)


def deep() -> tuple[nn.Sequential, Any, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(60, 5)
    return net, analyse(net, as_inputs(x)), x


def fitted(inside: Tensor, wanted: Tensor) -> Tensor:
    """The best weight and bias from inputs (rows) to outputs, by numpy: (columns + 1, outputs)."""
    rows = np.concatenate([inside.double().numpy(), np.ones((len(inside), 1))], 1)
    return torch.from_numpy(np.linalg.lstsq(rows, wanted.double().numpy(), rcond=None)[0])


@torch.no_grad()
def test_a_layer_is_fitted_to_the_dense_output_on_what_the_small_model_gives_it() -> None:
    """The last one reads activations that are off, and loses none of its own channels but two."""
    net, graph, x = deep()
    plan = removing(graph, **{"0": (1, 4), "2": (0, 3)})
    fixed = compensated(graph, net, plan, Obs(damping=1e-12, weigh=False), data=[x])
    small = fxprune.rewrite(fixed, graph, plan).model
    kept = [1, 2, 4, 5, 6, 7]
    inside = small[:4](x)  # type: ignore[index, operator]
    best = fitted(inside, net(x))
    torch.testing.assert_close(fixed[4].weight[:, kept].double().T, best[:-1], rtol=1e-3, atol=1e-4)  # type: ignore[index, union-attr]
    torch.testing.assert_close(fixed[4].bias.double(), best[-1], rtol=1e-3, atol=1e-4)  # type: ignore[index, union-attr]
    alone = fitted(net[:4](x)[:, kept], net(x))  # of old activations
    assert float((best - alone).abs().max()) > 1e-2


@torch.no_grad()
def test_a_convolution_is_fitted_over_all_taps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 3, stride=2, padding=1, dilation=1))
    x = torch.randn(6, 2, 9, 9)
    graph = analyse(net, as_inputs(x))
    plan = removing(graph, **{"0": (1,)})
    fixed = compensated(graph, net, plan, Obs(damping=1e-12, weigh=False), data=[x])
    inside = F.unfold(net[:2](x)[:, [0, 2, 3]], 3, 1, 1, 2).transpose(1, 2).flatten(0, 1)
    best = fitted(inside, net(x).flatten(2).transpose(1, 2).flatten(0, 1))
    found = fixed[2].weight[:, [0, 2, 3]].flatten(1).double().T  # type: ignore[index, union-attr]
    torch.testing.assert_close(found, best[:-1], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_channel_that_never_changes_goes_into_the_bias() -> None:
    net, graph, x = deep()
    net[0].weight[2], net[0].bias[2] = 0.0, 0.7  # type: ignore[index, assignment]
    plan = removing(graph, **{"0": (2,)})
    fixed = compensated(graph, net, plan, Obs(damping=1e-9), data=[x])
    small = fxprune.rewrite(fixed, graph, plan).model
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    want = net[2].bias + net[2].weight[:, 2] * np.tanh(0.7)
    torch.testing.assert_close(fixed[2].bias, want, rtol=1e-3, atol=1e-4)  # type: ignore[index]


def test_one_after_the_other_is_closer_than_all_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correction, "MOST", 0)  # batches side by side
    net, graph, x = deep()
    plan = removing(graph, **{"0": (1, 4, 6), "2": (0, 3)})
    errors = {}
    for together in (1, 99):
        fixed = compensated(graph, net, plan, Obs(damping=1e-6, together=together), data=[x[:30], x[30:]])
        errors[together] = error(net, fxprune.rewrite(fixed, graph, plan).model, [x])
    assert errors[1] < 0.97 * errors[99]


@pytest.mark.parametrize(("name", "value"), [("LARGEST", 1), ("ROWS", 60)])
def test_with_less_memory_it_still_corrects(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taps each for itself, or some of the places."""
    monkeypatch.setattr(regression, name, value)
    net, graph, data = made()
    plan = removing(graph, **{"0": (0, 4), "2": (0, 1)})
    plain = fxprune.rewrite(net, graph, plan).model
    fixed = compensated(graph, net, plan, Obs(), data=data)
    small = fxprune.rewrite(fixed, graph, plan).model
    assert error(net, small, data) < error(net, plain, data)
    assert check_dense(fixed, small, graph, plan).ok


def test_layers_that_read_the_same_go_in_one_pass() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.q, self.k, self.o = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.a(x))
            return self.o(self.q(x) * self.k(x))  # type: ignore[no-any-return]

    net, x = Heads(), torch.randn(8, 4)
    graph = analyse(net, as_inputs(x))
    found = regression.readers(Context(graph, net, "obs", [x]), set())
    assert [list(p) for p in regression.packages(found, 1)] == [["a.weight"], ["q.weight", "k.weight"], ["o.weight"]]


@pytest.mark.filterwarnings("ignore:the text conditions of this")
def test_both_streams_of_an_attention_are_corrected() -> None:
    """Text and images read the same heads, each by a layer of its own; of the last block the text's goes unread."""
    net = model("sd3")
    data, loss = fxprune.calibration(net, 2)
    graph = fxprune.trace(net)
    heads = next(g for g in graph.groups if {"to_out.0.weight", "to_add_out.weight"} <= _ends(g))
    plan = fxprune.plan(graph, {g.name: np.arange(float(len(g))) for g in graph.groups}, 0.0)
    plan = replace(plan, removed={heads.name: (0,)})
    fixed = compensated(graph, net, plan, Obs(), data=data, loss=loss)
    small = fxprune.rewrite(fixed, graph, plan).model
    assert check_dense(fixed, small, graph, plan).ok
    old, new = net.state_dict(), fixed.state_dict()
    for s in heads.slices:
        if s.tensor.endswith(("to_out.0.weight", "to_add_out.weight")):
            assert not torch.equal(old[s.tensor], new[s.tensor]), s.tensor


def _ends(group: fxprune.Group) -> set[str]:
    return {s.tensor.split("attn.")[-1] for s in group.slices}


def test_another_criterion_may_choose() -> None:
    net, _, data = made()
    chosen = Obs(select="taylor")
    assert chosen.needs == {"data", "forward", "loss"}
    options: dict[str, Any] = {"example_inputs": data[0][:2], "data": data, "progress": False}
    with pytest.raises(InputsError, match="pass loss="):
        fxprune.prune(net, chosen, 0.4, **options)
    options["loss"] = lambda m, b: m(b).square().mean()
    small, plain = (fxprune.prune(net, c, 0.4, **options) for c in (chosen, "taylor"))
    assert fxprune.report(small).plan.removed == fxprune.report(plain).plan.removed
    assert error(net, small, data) < error(net, plain, data)
    with pytest.raises(CriterionError, match="must be at least 1"):
        Obs(together=0)
    with pytest.raises(CriterionError, match="nowhere"):
        Obs(select="nowhere")
