"""Copies run on their own parts: closures, hooks, old norms, tables that fill themselves, parametrised weights."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import fxprune
from fxprune.graph.copies import deep_copy


class Closed(nn.Module):
    """A forward that is given, and closes over modules."""

    def __init__(self, parts: list[nn.Module], run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts, self.run = nn.ModuleList(parts), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def by_lambda() -> nn.Module:
    a, n, b = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16)
    return Closed([a, n, b], lambda x: x + b(n(a(x)).relu()))


def by_partial() -> nn.Module:
    a, b = nn.Linear(16, 32), nn.Linear(32, 16)

    def run(x: Tensor, first: nn.Module, rest: list[nn.Module]) -> Tensor:
        x = first(x)
        for layer in rest:
            x = layer(x.relu())
        return x

    return Closed([a, b], functools.partial(run, first=a, rest=[b]))


def nested() -> nn.Module:
    a, b = nn.Linear(16, 32), nn.Linear(32, 16)
    layers = {"a": a, "b": b}

    def step(name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: layers[name](x)

    first, second = step("a"), step("b")
    return Closed([a, b], lambda x: second(first(x).relu()))


def by_default() -> nn.Module:
    a, b = nn.Linear(16, 32), nn.Linear(32, 16)

    def run(x: Tensor, a: nn.Module = a, *, b: nn.Module = b) -> Tensor:
        return b(a(x).relu())

    return Closed([a, b], run)


def hooked() -> nn.Module:
    """A hook adds what another module makes."""
    a, b, side = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 32)
    net = Closed([a, b, side], lambda x: b(a(x).relu()))
    a.register_forward_hook(lambda m, given, out: out + side(given[0]))
    return net


CLOSURES = [by_lambda, by_partial, nested, by_default, hooked]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("made", CLOSURES, ids=lambda f: f.__name__)
def test_closures_close_over_the_copy(made: Callable[[], nn.Module], inplace: bool) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 16), made(), nn.Linear(16, 4)), torch.randn(2, 8)
    before = net(x)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False, inplace=inplace)
    assert fxprune.report(small).forward == "module"
    assert (small is net) == inplace
    if not inplace:
        assert torch.equal(net(x), before)
    out = small(x)
    with torch.no_grad():
        small[1].parts[0].weight.zero_()
        small[1].parts[0].bias.fill_(1.0)
    assert not torch.equal(small(x), out)
    assert not any(m.training for m in small.eval().modules())
    graph = fxprune.trace(small, x)
    assert all(c.ok for c in fxprune.verify(small, small, graph, fxprune.plan(graph, scores(graph), 0.0)))


def scores(graph: fxprune.ChannelGraph) -> dict[str, Any]:
    return {g.name: [1.0] * len(g) for g in graph.groups}


def test_tensors_with_a_history_are_copied_from_containers() -> None:
    net = nn.Linear(4, 4)
    seen: list[Tensor] = []
    net.kept = {"last": seen}
    net.register_forward_hook(lambda m, given, out: seen.append(out))
    net(torch.randn(1, 4))
    (kept,) = deep_copy(net).kept["last"]
    assert kept.is_leaf
    assert torch.equal(kept, seen[0])


def test_old_weight_norm_loads_into_a_given_module(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(weight_norm(nn.Conv1d(4, 24, 3)), nn.ReLU(), weight_norm(nn.Conv1d(24, 4, 3)))
    x = torch.randn(2, 4, 9)
    net(x)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    again = fxprune.load(fxprune.save(small, tmp_path / "m"), model=net)
    assert torch.equal(again(x), small.eval()(x))


def recorded(cls: type[nn.Module]) -> type[nn.Module]:
    class Wrapper(cls):  # type: ignore[misc, valid-type]
        pass

    Wrapper.__name__, Wrapper.__module__ = cls.__name__, cls.__module__
    return Wrapper


@recorded
class Persistent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def test_classes_that_call_themselves_otherwise_are_saved(tmp_path: Path) -> None:
    net, x = Persistent(), torch.randn(2, 8)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    again = fxprune.load(fxprune.save(small, tmp_path / "m"), model=net)
    assert torch.equal(again(x), small.eval()(x))
    with pytest.raises(fxprune.SaveError, match=r"holds a recorded.<locals>.Persistent, model= is a Linear"):
        fxprune.load(tmp_path / "m", model=nn.Linear(8, 4))


class Rotary(nn.Module):
    """Cosines that are made anew when a longer input comes; `filled`: how many rows there are at first."""

    def __init__(self, d: int, filled: int) -> None:
        super().__init__()
        self.register_buffer("inv", 0.1 ** (torch.arange(0, d, 2) / d), persistent=False)
        self.register_buffer("cos", None, persistent=False)
        self.have = 0
        if filled:
            self.fill(filled)

    def fill(self, n: int) -> None:
        self.cos, self.have = torch.outer(torch.arange(n).float(), self.inv).cos(), n

    def forward(self, n: int) -> Tensor:
        if n > self.have:
            self.fill(n)
        return self.cos[:n]


class Turned(nn.Module):
    def __init__(self, filled: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.rotary, self.h, self.d = Rotary(8, filled), 4, 8

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.h, self.d)).transpose(1, 2) for f in (self.q, self.k, self.v))
        cos = self.rotary(x.shape[1])
        q, k = (torch.stack([t[..., ::2] * cos, t[..., 1::2] * cos], -1).flatten(-2) for t in (q, k))
        return x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("filled", [0, 12])
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_tables_that_fill_themselves(filled: int, ran: bool, attention: str) -> None:
    """The pruned model works on longer inputs than those it was traced on, and tracing leaves nothing in the tables."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 32), Turned(filled), nn.Linear(32, 3)), torch.randn(2, 7, 6)
    if ran:
        net(x)
    had = net[1].rotary.cos
    graph = fxprune.trace(net, x, attention=attention)
    assert net[1].rotary.cos is had
    ratios = {g.name: 0.5 for g in graph.groups if g.name.startswith(("1.q", "1.v"))}
    small = fxprune.prune(net, "magnitude", ratios=ratios, example_inputs=x, progress=False, attention=attention)
    assert fxprune.report(small).forward == "module"
    assert small[1].q.out_features == 16
    assert small(torch.randn(2, 21, 6)).shape == (2, 21, 3)


def test_a_parametrised_weight_is_not_changed_by_reading_it() -> None:
    """In training each read of a spectral norm takes a step of its power iteration."""
    torch.manual_seed(0)
    norm = parametrizations.spectral_norm
    net, x = nn.Sequential(norm(nn.Linear(8, 24)), nn.ReLU(), norm(nn.Linear(24, 4))).train(), torch.randn(2, 8)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False, strict=True)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert small.training
    assert small[0].out_features < 24
