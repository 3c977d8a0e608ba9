"""What only train mode reads is coupled, checked and named, and costs nothing where nothing differs."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.graph.modes import Watch, differs
from fxprune.verification import check_training


class Trunk(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 48, 3, padding=1)
        self.head, self.aux = nn.Conv2d(48, 5, 1), nn.Conv2d(width, 5, 1)


class Deep(Trunk):
    """Deep supervision: a head that only training reads."""

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        y = self.head(self.b(x).relu())
        return (y, self.aux(x)) if self.training else y


class Wide(Trunk):
    """A draw as wide as a number of __init__, in train mode only (the recurrent nets of speech)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.training:
            h = h * (torch.rand(1, self.width, 1, 1) > 0.1)
        return self.head(self.b(h).relu()) + self.aux(h)


class Switched(Trunk):
    """The mode is read by `train` only, which sets another switch."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = True

    def train(self, mode: bool = True) -> Switched:
        self.deep = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        y = self.head(self.b(x).relu())
        return {"out": y, "aux": self.aux(x)} if self.deep else {"out": y}


class Normed(Trunk):
    """An auxiliary classifier with norms and dropout, on one sample of one position."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.aux = nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        y = self.head(self.b(x).relu())
        if self.training:
            return y, self.aux(F.dropout(self.norm(x.mean((2, 3))), 0.5, self.training))
        return y


class Streams(Trunk):
    """Residual branches in both modes, and noise on the stream in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = x + self.two(self.one(x).relu())
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return self.head(self.b(x).relu()), self.aux(x)


DIFFERENT = [Deep, Wide, Switched, Normed, Streams]


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8)


def pruned(model: nn.Module, x: Any, **options: Any) -> Any:
    return fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False, **options)


def train_once(model: nn.Module, *inputs: Any) -> None:
    out = model.train()(*inputs)
    sum(t.square().mean() for t in pytree.tree_leaves(out)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("cls", DIFFERENT)
def test_the_first_training_step_of_the_pruned_model_runs(cls: type[nn.Module]) -> None:
    model, x = cls().train(), images()
    before = copy.deepcopy(model.state_dict())
    small = pruned(model, x)
    report = fxprune.report(small)
    assert [c.name for c in report.checks] == ["masked = dense", "masked = dense in train mode"]
    assert report.forward == "module"
    assert small.a.out_channels < 32
    assert small.aux.weight.shape[1] == small.a.out_channels
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    train_once(small, images(3))


def test_a_batch_of_one_trains_beside_a_second_sample() -> None:
    graph = fxprune.trace(Normed(), images(1))
    assert graph.unseen == ""
    assert graph.training is not None
    assert graph.unread == ()


def test_a_missed_coupling_of_train_mode_fails_the_proof() -> None:
    model, x = Deep(), images()
    graph = fxprune.trace(model, x)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    small = fxprune.rewrite(model, graph, plan).model
    checks = check_training(model, small, graph, plan)
    assert [c.ok for c in checks] == [True]
    with torch.no_grad():
        small.aux.weight[:, [0, 1]] = small.aux.weight[:, [1, 0]]
    assert not check_training(model, small, graph, plan)[0].ok
    small.aux = nn.Conv2d(32, 5, 1)
    with pytest.raises(fxprune.VerifyError, match="does not run in train mode"):
        check_training(model, small, graph, plan)
    blind = dataclasses.replace(graph, training=None, unseen="it is odd")
    with pytest.raises(fxprune.VerifyError, match=r"train mode could not be traced \(it is odd\): keep what it reads"):
        check_training(model, small, blind, plan)


@pytest.mark.parametrize("cls", [Deep, Wide])
def test_soft_masks_see_it_before_the_training(cls: type[nn.Module]) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return sum(t.square().mean() for t in pytree.tree_leaves(model(batch)))

    small = pruned(cls(), images(), scheduler="soft", steps=20, data=[images()], loss=loss)
    train_once(small, images())


def test_a_graph_as_the_forward_has_both_modes() -> None:
    model, x = Deep(), images()
    graph = fxprune.trace(model, x)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    small = fxprune.rewrite(model, graph, plan, forward="graph").model
    assert isinstance(small.eval()(x), Tensor)
    assert len(small.train()(x)) == 2
    assert all(c.ok for c in check_training(model, small, graph, plan))


class Supervised(Trunk):
    """Train mode needs targets: it cannot be looked at on these inputs."""

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        x = self.a(x).relu()
        if self.training:
            return F.mse_loss(self.aux(x), target)  # type: ignore[arg-type]
        return self.head(self.b(x).relu())


def test_what_no_trace_has_read_is_named() -> None:
    small = pruned(Supervised(), images())
    report = fxprune.report(small)
    assert "AttributeError" in report.unseen or "TypeError" in report.unseen
    assert report.unread == ("aux.weight", "aux.bias")
    assert "read by no trace, left whole: aux.weight, aux.bias" in repr(report)
    assert "train mode was not checked" in repr(report)


def test_inputs_that_both_modes_take_show_both() -> None:
    inputs = (images(), torch.randn(2, 5, 8, 8))
    small = pruned(Supervised(), inputs)
    assert fxprune.report(small).unread == ()
    small.train()(*inputs).backward()


class Alike(nn.Module):
    """Reads its mode for a dropout and to drop whole samples: no width hangs on it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.norm(self.a(x)).relu(), 0.2, self.training)
        if self.training:
            h = h * (h.new_empty(len(h), 1).bernoulli_(0.9) / 0.9)
        return self.b(h)


def test_nothing_is_traced_twice_where_nothing_differs() -> None:
    graph = fxprune.trace(Alike(), torch.randn(3, 8))
    assert graph.training is None
    assert not graph.unseen
    assert differs(Deep(), ((images(),), {}), Watch(read=True))
    assert not differs(Deep(), ((images(),), {}), Watch(read=False))  # nobody read it: not run at all


def test_a_draw_in_both_modes_stays_whole() -> None:
    class Noisy(Alike):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h + torch.randn_like(h))

    graph = fxprune.trace(Noisy(), torch.randn(3, 8))
    assert not graph.groups
    assert "random numbers" in {h.cause for h in graph.frozen()}


def test_blocks_go_in_both_modes() -> None:
    model, x = Streams(), images()
    small = pruned(model, x, granularity="both")
    small.train()(images(3))
    graph = fxprune.trace(model, x)
    assert [b.name for b in graph.blocks] == [b.name for b in graph.modes[1].blocks]
    less = graph.without([graph.blocks[0].name])
    assert len(less.modes) == 2
    assert "one.weight" not in less.tensors
