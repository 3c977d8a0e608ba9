"""A trace is kept while its module lives, and made anew where anything has changed that it hangs on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.graph import kept
from fxprune.graph import trace as tracing

FLAG: dict[str, Any] = {"activation": F.relu, "twice": False, "in_training": False}


class Net(nn.Module):
    """Two layers whose way hangs on attributes, on a global, and on a table that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.heads = 2
        self.table = torch.full((1,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = FLAG["activation"](self.first(x)) + self.table
        h = h.view(len(x), self.heads, 8 // self.heads).flatten(1)
        if FLAG["in_training"] and self.training:
            h = h + h.mean(1, keepdim=True)
        out: Tensor = self.second(h + h if FLAG["twice"] else h + 1)
        return out


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type]]:
    """The classes of what was exported, in order."""
    seen: list[type] = []
    export = tracing._export

    def counted(model: nn.Module, inputs: Any) -> Any:
        seen.append(type(model.model))
        return export(model, inputs)

    monkeypatch.setattr(tracing, "_export", counted)
    kept.forget()
    yield seen
    kept.forget()


X = torch.ones(3, 6)


def test_a_second_trace_is_the_first_one_on_the_new_inputs(exports: list[type]) -> None:
    net = Net()
    first = fxprune.trace(net, X)
    second = fxprune.trace(net, 2 * X)
    assert exports == [Net]
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.traced.example[0][0], 2 * X)
    assert torch.equal(first.traced.example[0][0], X)


@pytest.mark.parametrize("heavy", [False, True], ids=["run", "run without values"])
def test_both_ways_to_run_find_it(exports: list[type], heavy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.graph.kept.LIGHT", 0 if heavy else 1e18)
    net = Net().train()
    for _ in range(3):
        fxprune.trace(net, X)
    assert len(exports) == 1
    assert net.training
    assert not any(hasattr(p, "_fxprune_origin") for p in (*net.parameters(), net.table))


def _other_method(monkeypatch: pytest.MonkeyPatch, net: Net) -> None:
    forward = Net.forward
    monkeypatch.setattr(Net, "forward", lambda self, x: forward(self, x) * 2)


def _other_instance(monkeypatch: pytest.MonkeyPatch, net: Net) -> None:
    net.forward = lambda x: Net.forward(net, x).relu()  # type: ignore[method-assign]


def _number_written_out(monkeypatch: pytest.MonkeyPatch, net: Net) -> None:
    """The same calls, with a number that no attribute gives any more."""

    def forward(self: Net, x: Tensor) -> Tensor:
        h = (F.relu(self.first(x)) + self.table).view(len(x), 2, 4).flatten(1)
        out: Tensor = self.second(h + 1)
        return out

    monkeypatch.setattr(Net, "forward", forward)


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Net], Any]] = {
    "method": _other_method,
    "instance": _other_instance,
    "number": _number_written_out,
    "global": lambda patch, net: patch.setitem(FLAG, "activation", F.gelu),
    "data flow": lambda patch, net: patch.setitem(FLAG, "twice", True),
    "train mode": lambda patch, net: patch.setitem(FLAG, "in_training", True),
    "attribute": lambda patch, net: setattr(net, "heads", 4),
    "hook": lambda patch, net: net.first.register_forward_hook(lambda m, args, out: out.sigmoid()),
    "layer": lambda patch, net: setattr(net, "second", nn.Linear(8, 5)),
    "class": lambda patch, net: setattr(net, "second", nn.Sequential(nn.Linear(8, 4))),
    "tied": lambda patch, net: setattr(net.first, "bias", nn.Parameter(torch.zeros(8))),
    "table": lambda patch, net: setattr(net, "table", torch.zeros(1)),
    "type": lambda patch, net: net.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_trace_hangs_on_makes_it_anew(change: str, exports: list[type], monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    fxprune.trace(net, X)
    CHANGES[change](monkeypatch, net)
    x = X.to(net.first.weight.dtype)
    before = len(exports)
    got = fxprune.trace(net, x)
    anew = len(exports) > before
    assert anew == (change != "tied")  # another parameter of the same shape changes nothing
    assert got.fingerprint == fxprune.graph.analysis.analyse(net, ((x,), {})).fingerprint


def test_other_questions_have_traces_of_their_own(exports: list[type]) -> None:
    net = Net()
    fxprune.trace(net, X)
    fxprune.trace(net, X[:2])
    fxprune.trace(net, X[:2], attention="head_dim")
    assert len(exports) == 3
    fxprune.trace(net, X[:2], outputs=lambda out: out)
    fxprune.trace(net, X[:2], outputs=lambda out: out)  # functions cannot be compared
    assert len(exports) == 5


def test_what_reads_values_is_traced_each_time(exports: list[type]) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h = self.layer(x)
            out: Tensor = self.last(h if bool(mask.any()) else h.relu())
            return out

    net, mask = Reads(), torch.tensor([True, False, True])
    assert fxprune.trace(net, (X, mask)).traced.noted
    made = len(exports)
    fxprune.trace(net, (X, ~mask & mask))
    assert len(exports) == 2 * made


def test_a_trace_goes_with_its_module_and_the_last_ones_stay(exports: list[type]) -> None:
    net = Net()
    gone = weakref.ref(net)
    graph = fxprune.trace(net, X)
    del net
    gc.collect()
    assert gone() is None
    assert not kept._kept
    assert len(graph.groups)
    nets = [Net() for _ in range(kept.MODELS + 1)]
    for net in nets:
        fxprune.trace(net, X)
    assert len(kept._kept) == kept.MODELS


class Small(nn.Sequential):
    """A class of its own, to count by."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


GIVEN: dict[str, Any] = {"example_inputs": X, "progress": False}


def test_pruning_sweeping_and_verifying_trace_once(exports: list[type]) -> None:
    net = Small()
    small = {ratio: fxprune.prune(net, "magnitude", ratio, **GIVEN) for ratio in (0.2, 0.4, 0.6)}
    for made in small.values():
        fxprune.verify(net, made, fxprune.trace(net, X), fxprune.report(made).plan)
    fxprune.apply(net, fxprune.report(small[0.4]).plan, example_inputs=X)
    assert exports.count(Small) == 1


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


def test_studies_trace_once(exports: list[type]) -> None:
    net, data = Small(), dict[str, Any](data=[X], loss=_loss)
    fxprune.compare(net, ["magnitude", "taylor", "random"], [0.3, 0.5], **data, **GIVEN)
    fxprune.sensitivity(net, "magnitude", shares=[0.25, 0.5], **data, **GIVEN)
    assert exports.count(Small) == 1


def test_rounds_of_training_trace_once(exports: list[type]) -> None:
    from fxprune.schedulers.iterative import Iterative

    rounds: dict[str, Any] = {"scheduler": Iterative(rounds=4, until=1.0), "steps": 8, "data": [X] * 8, "loss": _loss}
    made = fxprune.prune(Small(), "magnitude", 0.5, **rounds, **GIVEN)
    assert len(fxprune.report(made).plan.removed)
    assert exports.count(Small) == 1
