"""Every way in which channels couple: the certificate, masked = dense, other batches, training, copies."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from couplings import CASES, made, random_scores
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.graph.rules.op import _RULES, Op
from fxprune.masking.comparison import outputs
from fxprune.planning.planner import plan
from fxprune.rewriting.rewrite import rewrite
from fxprune.verification import check_dense, check_permutation


@pytest.mark.parametrize("name", sorted(CASES))
def test_law(name: str) -> None:
    model, inputs = made(name)
    graph = analyse(model, inputs)
    certificate = check_permutation(model, graph)
    assert certificate.ok, certificate
    planned = plan(graph, random_scores(graph), CASES[name][2])
    small = rewrite(model, graph, planned).model
    check = check_dense(model, small, graph, planned)
    assert check.ok, check
    assert type(small) is type(model)
    now = sum(p.numel() for p in small.parameters())
    assert now == planned.costs["params"][1]
    assert now < 0.9 * planned.costs["params"][0]
    again = pytree.tree_map(lambda t: torch.cat([t, t[:1]]) if isinstance(t, Tensor) else t, inputs)
    if name != "Bags":
        assert outputs(small, again)[0].shape[0] == inputs[0][0].shape[0] + 1
    small.train()
    sum(o.float().pow(2).mean() for o in pytree.tree_leaves(small(*inputs[0]))).backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    copy.deepcopy(small).eval()(*inputs[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, _ = made("Called")
    model.to(dtype)
    graph = analyse(model, as_inputs(torch.randn(2, 3, 8, 8, dtype=dtype)))
    planned = plan(graph, random_scores(graph), 0.4)
    small = rewrite(model, graph, planned).model
    assert check_dense(model, small, graph, planned).ok
    assert {p.dtype for p in small.parameters()} == {dtype}


class Joined(nn.Module):
    """Convolutions, a concatenation, a flattening and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Linear(90, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.o(torch.relu(self.c(torch.flatten(x, 1))))


@pytest.mark.parametrize("op", ["aten::cat", "aten::flatten", "aten::conv2d", "aten::linear"])
def test_a_wrong_rule_is_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both proofs fail when one rule gives its output channels in the wrong order."""
    right = _RULES[op]

    def wrong(node: Op) -> object:
        labels = list(right(node))
        labels[1] = None if labels[1] is None else labels[1][::-1].copy()
        return tuple(labels)

    torch.manual_seed(0)
    model, inputs = Joined().eval(), as_inputs(torch.randn(2, 3, 3, 3))
    for rule, sound in ((right, True), (wrong, False)):
        monkeypatch.setitem(_RULES, op, rule)
        graph = analyse(model, inputs)
        planned = plan(graph, random_scores(graph), 0.25)
        assert check_permutation(model, graph).ok is sound
        assert check_dense(model, rewrite(model, graph, planned).model, graph, planned).ok is sound


def test_unknown_op_freezes_with_a_reason() -> None:
    class Inverted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.linalg.pinv(self.a(x)).mT)))

    graph = fxprune.trace(Inverted(), torch.randn(2, 4))
    held = {(h.tensor, h.axis): h for h in graph.frozen()}
    assert held["a.weight", 0].cause == "op without a rule"
    assert "no coupling rule" in held["a.weight", 0].why
    assert ("b.weight", 0) not in held
    assert "test_rules.py" in held["a.weight", 0].source


def test_custom_op() -> None:
    @torch.library.custom_op("fxprune_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(twice(self.a(x)))

    model = Net()
    assert fxprune.trace(model, torch.randn(2, 4)).groups == ()

    @fxprune.coupling("fxprune_test::twice")
    def rule(op: Op) -> object:
        return op.labels("x")

    try:
        small = fxprune.prune(model, "magnitude", 0.5, example_inputs=torch.randn(2, 4), progress=False)
        assert small.a.out_features == 4
    finally:
        _RULES.pop("fxprune_test::twice")
    with pytest.raises(fxprune.PluginError, match="mylib::my_op"):
        fxprune.coupling("twice")


def test_the_leaf_of_the_documents() -> None:
    """The example in docs/extending.md: a custom op without a rule holds what it touches, and no more."""
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text().partition("## A module as a leaf")[2]
    space: dict[str, Any] = {"fxprune": fxprune}
    exec(text.partition("```python\n")[2].partition("```")[0], space)
    small = space["small"]
    assert small[3].weight.shape == (8, 8)
    assert small[2].out_features == small[4].in_features == 8
    assert small[0].out_features < 32 > small[4].out_features
    assert fxprune.report(small).forward == "module"
    held = next(c for c in fxprune.report(small).held if c.name == "op without a rule")
    assert "mylib::whiten has no coupling rule" in held.examples[0]
    assert held.share == pytest.approx(72 / 842)  # its own weight and bias, which no channel takes along
