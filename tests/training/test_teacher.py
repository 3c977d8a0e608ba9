"""What the dense model teaches: features by their mask, before the hand-off and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from depthnets import made
from torch import Tensor, nn

import fxprune
from fxprune import Distillation
from fxprune.training.distillation import Teacher
from fxprune.training.features import feature_sites

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))


def zero(net: nn.Module, x: Tensor = X) -> Tensor:
    return 0 * net(x).sum()


def features(**options: object) -> Distillation:
    return Distillation(**{"output": 0.0, "features": 1.0, "layers": ("0",), **options})  # type: ignore[arg-type]


def test_a_masked_feature_may_become_what_it_will_and_half_a_mask_counts_half() -> None:
    dense, student = net(), net()
    graph = fxprune.trace(dense, X)
    teacher = Teacher(dense, graph, features())
    with torch.no_grad():
        student[0].bias[2] += 1.0  # one feature is off by one, everywhere
    sizes = dense[0](X).square().sum(0).detach()

    def term(of_the_second: float, of_the_third: float) -> float:
        mask = np.ones(int(graph.component.max()) + 1)
        mask[graph.groups[0].components[[1, 2]]] = of_the_second, of_the_third
        teacher.follow(mask)
        return float(teacher.loss(student, lambda: zero(student)).detach())

    total = float(sizes.sum())
    assert term(1.0, 1.0) == pytest.approx(4 / total, rel=1e-4)
    assert term(1.0, 0.0) == 0
    assert term(1.0, 0.5) == pytest.approx(2 / (total - float(sizes[2]) / 2), rel=1e-4)
    assert term(0.0, 1.0) == pytest.approx(4 / (total - float(sizes[1])), rel=1e-4)


@pytest.mark.parametrize("forward", ["module", "graph"])
def test_after_the_cut_features_are_compared_with_those_of_the_channels_that_stay(forward: str) -> None:
    """A model that runs its rewritten graph calls no layer, and tells what the layer gave all the same."""
    dense = net()
    graph = fxprune.trace(dense, X)
    plan = fxprune.plan(graph, fxprune.score(graph, dense, "magnitude"), 0.5)
    small = fxprune.rewrite(dense, graph, plan, forward=forward).model
    teacher = Teacher(dense, graph, features())
    teacher.cut(plan.kept(graph))
    assert float(teacher.loss(small, lambda: zero(small)).detach()) == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        small.get_submodule("0").bias[0] += 1.0  # type: ignore[index,operator]
    kept = torch.from_numpy(plan.kept(graph)[graph.groups[0].components])
    want = 4 / float(dense[0](X)[:, kept].square().sum())
    assert float(teacher.loss(small, lambda: zero(small)).detach()) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("forward", ["module", "graph"])
def test_blocks_that_were_taken_out_are_not_compared(forward: str) -> None:
    dense, inputs, _ = made("pre-norm")
    (given,) = inputs(2)
    graph = fxprune.trace(dense, given)
    sizes = {g.name: len(g) for g in graph.without(["blocks.0.attn"]).groups}
    plan = fxprune.Plan(graph.model_class, graph.fingerprint, {}, sizes, blocks=("blocks.0.attn",))
    small = fxprune.rewrite(dense, graph, plan, forward=forward).model.train()
    seen: dict[str, list[Tensor]] = {"blocks.0.mlp": [], "blocks.1": []}
    for model in (fxprune.rewrite(dense, graph, plan).model, dense):  # whose modules run
        for name, found in seen.items():
            model.get_submodule(name).register_forward_hook(lambda _m, _x, out, found=found: found.append(out.detach()))
        model(given)
    each = [(a - b).square().sum() / b.square().sum() for a, b in seen.values()]

    def term(*layers: str) -> float:
        teacher = Teacher(dense, graph, features(layers=layers))
        teacher.cut(plan.kept(graph))
        return float(teacher.loss(small, lambda: 0 * small(given).sum()).detach())

    assert term("blocks.0.attn", "blocks.0.mlp", "blocks.1") == pytest.approx(float(sum(each)) / 2, rel=1e-4) != 0
    with pytest.raises(fxprune.InputsError, match=r"every layer .* was taken out of the .* \(blocks\.0\.attn, blocks"):
        term("blocks.0.attn", "blocks.0.norm1")


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_the_outputs_term_by_hand(t: float) -> None:
    dense, student = net(), net(1)
    z, taught = student(X), dense(X)
    want = {
        "mse": (z - taught).square().mean(),
        "kl": t * t * F.kl_div(F.log_softmax(z / t, 1), F.softmax(taught / t, 1), reduction="batchmean"),
    }
    for kind, value in want.items():
        for weight in (1.0, 0.25):
            teacher = Teacher(net(), None, Distillation(output=weight, kind=kind, temperature=t))
            found = teacher.loss(student, lambda: student(X).sum()) - student(X).sum()
            assert float(found.detach()) == pytest.approx(weight * float(value.detach()), rel=1e-4), kind


def test_every_call_of_the_loss_is_taught() -> None:
    student = net(1)
    one = Teacher(net(), None, Distillation()).loss(student, lambda: zero(student))
    two = Teacher(net(), None, Distillation()).loss(student, lambda: zero(student) + zero(student))
    assert float(two.detach()) == pytest.approx(2 * float(one.detach()))


class Shared(nn.Module):
    """A layer that runs twice, one that runs once, and one whose outputs are integers."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once, self.blocks = nn.Linear(6, 6), nn.Linear(6, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.once(self.twice(self.twice(x))))  # type: ignore[no-any-return]


def test_features_are_those_of_modules_that_run_once() -> None:
    graph = fxprune.trace(Shared(), X)
    assert set(feature_sites(graph)) == {"once", "blocks", "blocks.0", "blocks.1"}
    assert set(Teacher(Shared(), graph, Distillation(features=1.0)).sites) == {"blocks.0", "blocks.1"}
    with pytest.raises(fxprune.InputsError, match=r"'twice' of this Shared runs more than once"):
        Teacher(Shared(), graph, features(layers=("twice",)))
    one = nn.Linear(6, 2)
    graph = fxprune.trace(one, X)
    with pytest.raises(fxprune.InputsError, match="no element of a ModuleList or Sequential in this Linear"):
        Teacher(one, graph, Distillation(features=1.0))
