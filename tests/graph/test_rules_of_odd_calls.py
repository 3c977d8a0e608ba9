"""Calls that a rule was not written for: they freeze what they touch, or the rule knows them; no raw error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.graph.rules.op import _RULES, Op
from fxprune.verification import check_permutation


class Between(nn.Module):
    """Two layers with something between that reads a vector or writes by position."""

    def __init__(self, between: Callable[[Between, Tensor], Tensor], outputs: int = 16) -> None:
        super().__init__()
        self.between, self.first, self.last = between, nn.Linear(6, 16), nn.Linear(outputs, 3)
        self.one, self.four, self.two = (nn.Parameter(torch.randn(*s, 16)) for s in ((), (4,), (2, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)).relu())


def by_a_vector(net: Between, h: Tensor) -> Tensor:
    return F.linear(h.transpose(1, 2), torch.arange(8.0))


def along_a_vector(net: Between, h: Tensor) -> Tensor:
    return h * F.linear(h.sigmoid(), net.one).unsqueeze(-1)


WRITES: dict[str, Callable[[Between], tuple[object, object]]] = {
    "one for all": lambda net: ((slice(None), torch.tensor([1, 3])), net.one),
    "one for each": lambda net: ((slice(None), torch.tensor([1, 3, 5, 7])), net.four),
    "a batch": lambda net: ((slice(None), torch.tensor([1, 3])), net.two),
    "pairs": lambda net: ((torch.tensor([0, 1]), torch.tensor([2, 3])), net.one),
    "one of the batch": lambda net: ((0, torch.tensor([1, 3, 5, 7])), net.four),
    "a number": lambda net: ((slice(None), torch.tensor([1, 3])), 0.5),
    "a mask": lambda net: (torch.arange(16).view(2, 8) % 3 == 0, net.one),
}


def written(how: str) -> Callable[[Between, Tensor], Tensor]:
    def write(net: Between, h: Tensor) -> Tensor:
        index, value = WRITES[how](net)
        h[index] = value
        return h

    return write


@pytest.mark.parametrize("between", [by_a_vector, along_a_vector, *map(written, WRITES)], ids=lambda b: b.__name__)
def test_channels_pass(between: Callable[[Between, Tensor], Tensor]) -> None:
    net, x = Between(between), torch.randn(2, 8, 6)
    graph = fxprune.trace(net, x)
    assert [len(g) for g in graph.groups] == [16]
    assert check_permutation(net, graph).ok
    small = fxprune.prune(net, "random", 0.4, example_inputs=x, progress=False)
    assert small.first.out_features < 16
    assert all(c.ok for c in fxprune.report(small).checks)


def test_a_shuffle_keeps_its_number_of_groups() -> None:
    net = Between(lambda net, h: F.channel_shuffle(h.transpose(1, 2).unsqueeze(-1), 4).squeeze(-1).transpose(1, 2))
    graph = fxprune.trace(net, x := torch.randn(2, 8, 6))
    assert [len(g) for g in graph.groups] == [4]  # one place of each group
    small = fxprune.prune(net, "random", 0.4, example_inputs=x, progress=False)
    assert small.first.out_features in (4, 8)
    assert all(c.ok for c in fxprune.report(small).checks)


@pytest.mark.parametrize("rule", [lambda op: op.labels("self")[7], lambda op: op.labels("self")[:-1]])
def test_a_rule_that_does_not_fit_freezes(monkeypatch: pytest.MonkeyPatch, rule: Callable[[Op], object]) -> None:
    monkeypatch.setitem(_RULES, "aten::relu", rule)
    graph = fxprune.trace(Between(lambda net, h: h), torch.randn(2, 8, 6))
    assert not graph.groups
    held = {h.why for h in graph.frozen() if h.cause == "op without a rule"}
    assert held == {"aten::relu is called as its coupling rule does not know it"}


class Picked(nn.Module):
    """Heads of tokens that a mask picks, so that nobody knows how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(6, 32), nn.Parameter(torch.randn(4, 1)), nn.Linear(32, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x)[mask]
        return self.last((h.view(-1, 4, 8) * self.scale).flatten(1)).sum(0, keepdim=True)


def test_heads_of_an_unknown_number_of_tokens() -> None:
    net, given = Picked(), (torch.randn(2, 8, 6), torch.arange(16).view(2, 8) % 3 == 0)
    graph = fxprune.trace(net, given)
    assert sum(len(g) for g in graph.groups) in (4, 8)
    assert check_permutation(net, graph).ok
