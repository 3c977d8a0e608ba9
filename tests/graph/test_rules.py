"""Every way in which channels couple: the certificate, masked = dense, other batches, training, copies."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from couplings import CASES, split_heads
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.graph.recording import bypassed
from fxprune.graph.rules.op import _RULES, Op
from fxprune.masking.comparison import outputs
from fxprune.planning.planner import plan
from fxprune.rewriting.rewrite import rewrite
from fxprune.verification import check_dense, check_permutation


def scores_of(graph: fxprune.ChannelGraph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.random(len(g)) for g in graph.groups}


def made(name: str) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    cls, inputs, _ = CASES[name]
    return cls().eval(), as_inputs(inputs())


@pytest.mark.parametrize("name", sorted(CASES))
def test_law(name: str) -> None:
    model, inputs = made(name)
    graph = analyse(model, inputs)
    certificate = check_permutation(model, graph)
    assert certificate.ok, certificate
    planned = plan(graph, scores_of(graph), CASES[name][2])
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
    planned = plan(graph, scores_of(graph), 0.4)
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
        planned = plan(graph, scores_of(graph), 0.25)
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


def test_memoised_functions_answer_each_layer_for_itself() -> None:
    model, inputs = made("Memoised")
    with bypassed(model, int):
        split_heads.cache_clear()
        assert split_heads(torch.Size([2, 6, 16]), 4) == (2, 6, 4, 4)
        assert split_heads.cache_info().currsize == 0
    small = fxprune.prune(model, "magnitude", 0.5, example_inputs=inputs, progress=False)
    assert fxprune.report(small).forward == "module"
    assert all(layer.heads < 4 or layer.qkv.out_features < 48 for layer in small.layers)
    assert all(type(n) is int for n in split_heads(torch.Size([2, 6, 16]), 4))
    assert isinstance(split_heads, functools._lru_cache_wrapper)  # as it was


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
    with pytest.raises(ValueError, match="mylib::my_op"):
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
    assert held.share > 0.1


def test_head_dim_keeps_the_temperature() -> None:
    """Pruned head dimensions leave softmax's 1/sqrt(d) at that of the original model."""
    model, inputs = made("MultiHead")
    graph = fxprune.trace(model, inputs, attention="head_dim")
    planned = plan(graph, scores_of(graph), 0.4)
    small = rewrite(model, graph, planned).model
    assert check_dense(model, small, graph, planned).ok
    assert small.att.num_heads == 4
    assert small.att.embed_dim < 16


def test_literal_in_the_forward_is_held_or_run_as_a_graph() -> None:
    """A width written into the source: its axis is held; where that is too much, the graph becomes the forward."""

    class Literal(nn.Module):
        def __init__(self, wide: int) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, wide), nn.Linear(wide, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).view(2, 8) if self.training else self.a(x).view(-1, 8)
            return self.c(torch.relu(self.b(x)))

    inputs = torch.randn(2, 4)
    held = fxprune.prune(Literal(64), "magnitude", 0.4, example_inputs=inputs, progress=False)
    assert fxprune.report(held).forward == "module"
    assert held.a.out_features == 8
    forced = fxprune.prune(Literal(4), "magnitude", 0.7, example_inputs=inputs, progress=False)
    assert fxprune.report(forced).forward == "graph"
    assert forced(torch.randn(5, 4)).shape == (5, 3)
    assert copy.deepcopy(forced)(inputs).shape == (2, 3)
    given = Literal(4)
    inplace = fxprune.prune(given, "magnitude", 0.7, example_inputs=inputs, inplace=True, progress=False)
    assert inplace is given
    assert given.forward.__self__ is given
    with pytest.raises(fxprune.RewriteError, match="strict"):
        fxprune.prune(Literal(4), "magnitude", 0.7, example_inputs=inputs, strict=True, progress=False)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_old_weight_norm() -> None:
    """It keeps a computed weight on the module, which copy.deepcopy refuses after a forward with gradients."""
    norm = nn.utils.weight_norm
    model = nn.Sequential(norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), norm(nn.Conv2d(16, 12, 3)), nn.Conv2d(12, 4, 1)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    model(inputs)
    graph = analyse(model, as_inputs(inputs))
    assert check_permutation(model, graph).ok
    planned = plan(graph, scores_of(graph), 0.4)
    small = rewrite(model, graph, planned).model
    assert check_dense(model, small, graph, planned).ok


def test_a_graph_forward_repeats_for_any_batch() -> None:
    """`repeat_interleave` carries a hint of its output's size, which is the traced batch's."""

    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            times = torch.full((x.shape[0],), 2)
            h = torch.relu(self.a(x))
            return self.b(torch.repeat_interleave(h, times, dim=0, output_size=2 * x.shape[0]))

    model, inputs = Repeating().eval(), as_inputs(torch.randn(2, 4))
    graph = analyse(model, inputs)
    planned = plan(graph, scores_of(graph), 0.3)
    small = rewrite(model, graph, planned, forward="graph").model
    assert check_dense(model, small, graph, planned).ok
    assert small(torch.randn(3, 4)).shape == (6, 3)


class Remembering(nn.Module):
    """Keeps a table in a method's lru_cache, and installs hooks at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o, self.calls = nn.Linear(8, 16), nn.Linear(16, 3), 0

    @functools.lru_cache  # noqa: B019 - the habit that is tested
    def table(self, n: int) -> Tensor:
        return torch.arange(n) / n

    def forward(self, x: Tensor) -> Tensor:
        if not getattr(self, "hooked", False):
            self.hooked = True
            self.a.register_forward_hook(lambda m, args, out: out + 1)
        return self.o(self.a(x) + self.table(16))


def test_a_trace_leaves_no_memory_behind() -> None:
    """Else fake tensors or doubled hooks would meet the next call."""
    torch.manual_seed(0)
    net, x = Remembering().eval(), torch.randn(2, 8)
    want = copy.deepcopy(net)(x)
    analyse(net, ((x,), {}))
    assert not net.a._forward_hooks
    assert torch.equal(net(x), want)
    assert len(net.a._forward_hooks) == 1
