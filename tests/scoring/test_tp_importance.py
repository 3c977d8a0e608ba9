"""Torch-Pruning's importances give our groups the scores that they give its own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import CriterionError, InputsError
from fxprune.scoring.tp_groups import holders, present
from fxprune.scoring.tp_importance import TorchPruningImportance

tp = pytest.importorskip("torch_pruning")
importance = tp.importance

IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": importance.GroupMagnitudeImportance,
    "first": lambda: importance.GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None),
    "max": lambda: importance.GroupMagnitudeImportance(group_reduction="max", normalizer="max", bias=True),
    "lamp": importance.LAMPImportance,
    "bn_scale": importance.BNScaleImportance,
    "fpgm": importance.FPGMImportance,
    "taylor": lambda: importance.GroupTaylorImportance(normalizer=None),
    "hessian": importance.GroupHessianImportance,
    "activation": lambda: importance.ActivationImportance(normalizer="max"),
    "obdc": lambda: importance.OBDCImportance(num_classes=5),
}


def chain() -> nn.Module:
    """Convolutions and batch norms without biases (OBDC fails on them), a grouped and a transposed one, a flatten."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 6, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 7, bias=False),
        nn.ReLU(),
        nn.Linear(7, 5, bias=False),
    )


def mlp() -> nn.Module:
    layers = [nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 9), nn.BatchNorm1d(9), nn.Linear(9, 5)]
    return nn.Sequential(*layers)


def residual() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(num_classes=5)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (2, 3, 6, 6)),
    "mlp": (mlp, (2, 6)),
    "resnet18": (residual, (2, 3, 32, 32)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = NETS[name]
    net = build().eval()
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    return net, torch.randn(shape)


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(net(batch), torch.arange(len(batch)))


def sum_loss(net: nn.Module, sample: Tensor) -> Tensor:
    return net(sample).square().sum()


def theirs(net: nn.Module, x: Tensor, scorer: Any, of: Callable[[nn.Module, Tensor], Tensor]) -> dict[str, Tensor]:
    """The layers that make channels -> scores of those channels, as Torch-Pruning's documents have it."""
    net = copy.deepcopy(net)
    names = {m: n for n, m in net.named_modules()}
    graph = tp.DependencyGraph().build_dependency(net, x)
    if isinstance(scorer, importance.GroupHessianImportance):
        for sample in x.split(1):
            net.zero_grad()
            of(net, sample).backward()
            scorer.accumulate_grad(net)
    elif isinstance(scorer, importance.OBDCImportance):
        pruner = tp.pruner.BasePruner(net, x, scorer, ignored_layers=[])
        pruner._downstream_node_as_root_if_attention = lambda group: group  # its own returns None without attention
        scorer._prepare_model(net, pruner)
        of(net, x).backward()
        scorer.step()
    elif isinstance(scorer, importance.ActivationImportance):
        with scorer.compute_importance(net):
            net(x)
    else:
        of(net, x).backward()
    out = {}
    for group in graph.get_all_groups():
        scores = scorer(group)
        for dep, idxs in group:
            if graph.is_out_channel_pruning_fn(dep.handler) and idxs == list(range(len(idxs))) and scores is not None:
                out[names.get(dep.target.module, "")] = scores
    return out


PAIRS = [("chain", name) for name in IMPORTANCES]
PAIRS += [("mlp", name) for name in IMPORTANCES if name != "obdc"]  # OBDC fails on layers with biases
PAIRS += [("resnet18", name) for name in ("magnitude", "max", "taylor", "hessian")]


@pytest.mark.parametrize(("net", "name"), PAIRS)
def test_scores_are_those_of_torch_pruning(net: str, name: str) -> None:
    model, x = made(net)
    of = sum_loss if name == "hessian" else loss
    expected = theirs(model, x, IMPORTANCES[name](), of)
    scores = fxprune.score(fxprune.trace(model, x), model, IMPORTANCES[name](), data=[x], loss=of)
    compared = [g for g in scores.values if g not in scores.unscored]
    assert len(compared) >= (12 if net == "resnet18" else 1)
    for group in compared:
        values, want = scores.values[group], expected[group.partition(":")[0].removesuffix(".weight")]
        np.testing.assert_allclose(values, want[: len(values)].double().numpy(), rtol=2e-4, atol=1e-7, err_msg=group)


def test_it_prunes_and_leaves_no_trace() -> None:
    model, x = made("chain")
    seen: list[int] = []
    model[0].register_forward_pre_hook(lambda *_: seen.append(1))
    before = [dict(vars(m)) for m in model.modules()]
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name in ("obdc", "activation", "hessian"):
        scorer = IMPORTANCES[name]()
        small = fxprune.prune(model, scorer, 0.4, data=[x], loss=loss, example_inputs=x, progress=False)
        assert fxprune.report(small).plan.criterion.startswith(type(scorer).__name__ + "(")
        for module, was in zip(model.modules(), before, strict=True):
            assert vars(module).keys() == was.keys()
        assert len(model[0]._forward_pre_hooks) == 1
        assert not any(m._backward_hooks for m in model.modules())
    assert seen
    assert all(p.grad is None and torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_gradients_are_asked_for() -> None:
    model, x = made("mlp")
    graph = fxprune.trace(model, x)
    with pytest.raises(InputsError, match=r"GroupTaylorImportance.* of package 'torch-pruning' .* pass data="):
        fxprune.score(graph, model, importance.GroupTaylorImportance())
    assert TorchPruningImportance(importance.RandomImportance()).needs == frozenset()
    once = fxprune.score(graph, model, importance.RandomImportance, seed=1)
    assert once == fxprune.score(graph, model, importance.RandomImportance, seed=1)


class Tokens(nn.Module):
    """Fused query, key and value, a table, a raw parameter, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.table = nn.Linear(3, 8), nn.Embedding(5, 8)
        self.token, self.qkv = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 24)
        self.register_buffer("place", torch.randn(1, 5, 8))
        self.out, self.leave = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + self.table(torch.arange(5)) + self.token + self.place
        q, k, v = self.qkv(x).view(2, 5, 3, 4, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)
        return self.leave(x + self.out(y))


def test_heads_have_the_mean_of_their_positions_and_what_is_left_out_is_told() -> None:
    torch.manual_seed(0)
    model, x = Tokens().eval(), torch.randn(2, 5, 3)
    graph = fxprune.trace(model, x)
    scorer = importance.GroupMagnitudeImportance(normalizer=None, group_reduction="sum")
    with pytest.warns(UserWarning, match=r"token, table\.weight, place .*do not count in the scores"):
        scores = fxprune.score(graph, model, scorer)
    heads = next(g for g in graph.groups if g.kind == "heads")
    rows = model.qkv.weight.detach().square().sum(1).view(3, 4, 2).sum((0, 2))
    columns = model.out.weight.detach().square().sum(0).view(4, 2).sum(1)
    six = 6  # positions of a head in its root layer, qkv
    np.testing.assert_allclose(scores.values[heads.name], ((rows + columns) / six).double().numpy(), rtol=1e-5)
    stream = next(g for g in graph.groups if g.name.startswith("enter"))
    group, width, odd = present(model, holders(model), stream)
    assert (width, set(odd)) == (1, {"table.weight", "token", "place"})
    assert group[0].dep.target.module is model.enter
    assert {dep.handler.__self__.__class__.__name__ for dep, _ in group} == {
        "LinearPruner",
        "EmbeddingPruner",
        "ParameterPruner",
    }


def test_a_grouped_convolution_has_all_its_input_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = fxprune.trace(model, torch.randn(1, 3, 4, 4))
    inner = next(g for g in graph.groups if any(s.tensor == "2.weight" and s.axis == 1 for s in g.slices))
    group = present(model, holders(model), inner)[0]
    entry = next(i for i in range(len(group)) if group[i].dep.target.module is model[2])
    assert sorted(group[entry].idxs) == list(range(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fxprune.score(graph, model, importance.MagnitudeImportance()).values[inner.name].shape == (len(inner),)


class Mine(importance.Importance):
    """What a user writes for Torch-Pruning: it reads gradients and says so nowhere."""

    def __call__(self, group: Any) -> Tensor:
        layer = group[0].dep.layer
        return (layer.weight.grad * layer.weight).abs().sum(1)[group[0].idxs]


class Wrong(importance.Importance):
    def __call__(self, group: Any) -> Tensor:
        return torch.ones(3)


class Nan(importance.Importance):
    def __call__(self, group: Any) -> Tensor:
        return torch.full((len(group[0].idxs),), torch.nan)


def test_importances_of_others() -> None:
    model, x = made("mlp")
    graph = fxprune.trace(model, x)
    values = fxprune.score(graph, model, Mine(), data=[x], loss=loss).values["0.weight:0"]
    loss(model, x).backward()
    assert model[0].weight.grad is not None
    np.testing.assert_allclose(values, (model[0].weight.grad * model[0].weight).abs().sum(1).detach(), rtol=1e-5)
    with pytest.raises(CriterionError, match=r"returned shape \(3,\) for group 0.weight:0"):
        fxprune.score(graph, model, Wrong())
    with pytest.raises(CriterionError, match=r"group 0.weight:0 hold NaN; normalizers divide"):
        fxprune.score(graph, model, Nan())
    with pytest.raises(CriterionError, match="of package 'torch-pruning' failed"):
        fxprune.score(graph, model, importance.OBDCImportance(), data=[x], loss=loss)  # TP: no biases
