"""All layers corrected in one pass over the data: runs that are halted where a layer runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.criteria.obs import Obs
from fxprune.errors import InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.planning.plan import Plan
from fxprune.rewriting import correction
from fxprune.rewriting.compensation import compensated
from fxprune.rewriting.lockstep import Halt, in_step
from fxprune.scoring.observation import Anew
from fxprune.verification import check_dense


class Stream(nn.Module):
    """Convolutions on a stream, the shortcut of one computed after its branch; every forward counts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.side, self.out = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        x = torch.tanh(self.a(x))
        y = self.c(torch.tanh(self.b(x)))
        return self.out((self.side(x) + y).mean((2, 3)))  # type: ignore[no-any-return]


def cut(net: nn.Module, x: Tensor, share: float = 0.5) -> tuple[ChannelGraph, Plan]:
    """The first channels of every group go."""
    graph = analyse(net, as_inputs(x))
    empty = fxprune.plan(graph, {g.name: np.arange(float(len(g))) for g in graph.groups}, 0.0)
    return graph, replace(empty, removed={g.name: tuple(range(int(share * len(g)))) for g in graph.groups})


def error(net: nn.Module, fixed: nn.Module, graph: ChannelGraph, plan: Plan, x: Tensor) -> float:
    small = fxprune.rewrite(fixed, graph, plan).model
    assert check_dense(fixed, small, graph, plan).ok
    with torch.no_grad():
        return float((small(x) - net(x)).square().mean())


@pytest.fixture
def stream() -> tuple[Stream, list[Tensor]]:
    torch.manual_seed(0)
    return Stream().eval(), [torch.randn(12, 3, 6, 6) for _ in range(3)]


def test_it_is_the_same_as_a_pass_for_every_layer(
    stream: tuple[Stream, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data = stream
    graph, plan = cut(net, data[0][:2])
    at_once = compensated(graph, net, plan, Obs(damping=1e-4), data=data)
    monkeypatch.setattr(correction, "MOST", 2)
    one_by_one = compensated(graph, net, plan, Obs(damping=1e-4), data=data)
    for (name, a), (_, b), (_, old) in zip(
        at_once.named_parameters(), one_by_one.named_parameters(), net.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert torch.equal(a, old) == name.startswith("a."), name


def test_it_runs_the_loss_once_a_batch_and_model(stream: tuple[Stream, list[Tensor]]) -> None:
    net, data = stream
    graph, plan = cut(net, data[0][:2])
    ran: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        ran.append(len(batch))
        return model(batch).square().mean()  # type: ignore[no-any-return]

    compensated(graph, net, plan, Obs(), data=data, loss=loss)
    assert len(ran) == 1 + 3 * len(data)  # the order of the layers, what samples count, and both models


def test_what_a_pass_that_broke_off_has_fitted_counts_for_nothing(stream: tuple[Stream, list[Tensor]]) -> None:
    net, data = stream
    graph, plan = cut(net, data[0][:2])
    few = [x[:1] for x in data]
    ran: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        ran.append(1)
        value = model(batch).square().mean()
        if len(ran) == 1 + 3 * len(few):  # the order of the layers is known, and all of them are fitted by now
            raise torch.OutOfMemoryError("of memory, out")
        return value  # type: ignore[no-any-return]

    told: list[list[str]] = [[], []]
    compensated(graph, net, plan, Obs(), data=few, notes=told[0])
    compensated(graph, net, plan, Obs(), data=few, loss=loss, notes=told[1])
    assert len(ran) > 1 + 3 * len(few)
    assert told[0] == told[1] != []


def test_what_does_not_fit_into_memory_is_done_in_passes(
    stream: tuple[Stream, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data = stream
    graph, plan = cut(net, data[0][:2])
    whole = error(net, compensated(graph, net, plan, Obs(), data=data), graph, plan, data[0])
    ran: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        ran.append(1)
        if len(ran) == 5:
            raise torch.OutOfMemoryError("of memory, out")
        return model(batch).square().mean()  # type: ignore[no-any-return]

    tried = error(net, compensated(graph, net, plan, Obs(), data=data, loss=loss), graph, plan, data[0])
    assert len(ran) > 5 + 2 * len(data)
    assert tried == pytest.approx(whole, rel=1e-2)
    monkeypatch.setattr(correction, "free_memory", lambda device: 1)
    ran[:] = [1] * 5
    told = error(net, compensated(graph, net, plan, Obs(), data=data, loss=loss), graph, plan, data[0])
    assert len(ran) > 5 + 1 + 2 * len(data)
    assert told == pytest.approx(whole, rel=1e-2)


class Remembers(nn.Module):
    """What its first part leaves in it, its last part reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.tanh(self.a(x))
        return self.c(torch.tanh(self.b(self.seen)) * self.seen)  # type: ignore[no-any-return]


def test_batches_do_not_see_what_others_leave_in_modules() -> None:
    torch.manual_seed(0)
    net, x = Remembers(), torch.randn(40, 4)
    graph, plan = cut(net, x[:2])
    halves, whole = (compensated(graph, net, plan, Obs(weigh=False), data=data) for data in ([x[:20], x[20:]], [x]))
    torch.testing.assert_close(halves.state_dict(), whole.state_dict(), rtol=1e-3, atol=1e-4)


def test_a_package_does_not_make_the_same_good_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In passes for several inputs the second layer sees what the first has lost, before that is corrected."""
    monkeypatch.setattr(correction, "MOST", 0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    x = torch.randn(200, 6)
    graph, plan = cut(net, x[:2], 0.0)
    plan = replace(plan, removed={graph.groups[0].name: tuple(range(12))})
    one, many = (error(net, compensated(graph, net, plan, Obs(together=n), data=[x]), graph, plan, x) for n in (1, 9))
    assert many < 2 * one


def test_it_sees_the_copies_that_autocast_makes(
    stream: tuple[Stream, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data = stream
    graph, plan = cut(net, data[0][:2])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch).square().mean()  # type: ignore[no-any-return]

    def found() -> float:
        return error(net, compensated(graph, net, plan, Obs(), data=data, loss=loss), graph, plan, data[0])

    at_once = found()
    monkeypatch.setattr(Anew, "__call__", lambda *_: None)
    stale = found()
    monkeypatch.setattr(correction, "MOST", 0)
    assert at_once < 1.2 * found() < stale


# ---- in step --------------------------------------------------------------------------------------------------------


def test_runs_go_on_together_and_draw_their_own_numbers() -> None:
    drawn: dict[int, list[float]] = {0: [], 1: []}
    seen: list[tuple[Hashable, dict[int, Any]]] = []

    def run(k: int) -> Callable[[Halt], None]:
        def go(halt: Halt) -> None:
            torch.manual_seed(k)
            for turn in range(3):
                halt(turn, (k, threading.get_ident()))
                drawn[k].append(float(torch.rand(())))

        return go

    torch.manual_seed(7)
    in_step([run(0), run(1)], lambda key, here: seen.append((key, here)))
    after = float(torch.rand(()))
    torch.manual_seed(7)
    assert after == float(torch.rand(()))
    for k in (0, 1):
        torch.manual_seed(k)
        assert drawn[k] == [float(torch.rand(())) for _ in range(3)]
    assert [key for key, _ in seen] == [0, 1, 2]
    assert all(set(here) == {0, 1} for _, here in seen)


def test_the_first_error_ends_all_runs() -> None:
    ended: list[str] = []

    def fails(halt: Halt) -> None:
        halt("a", 1)
        raise InputsError("no more")

    def waits(halt: Halt) -> None:
        try:
            halt("a", 2)
            halt("b", 2)
        finally:
            ended.append("waits")

    before = threading.active_count()
    with pytest.raises(InputsError, match="no more"):
        in_step([waits, fails], lambda key, here: None)
    assert ended == ["waits"]
    with pytest.raises(ZeroDivisionError):
        in_step([waits, waits], lambda key, here: 1 / 0)  # type: ignore[arg-type]
    assert threading.active_count() == before


def test_runs_that_part_ways_are_told_apart() -> None:
    keys: list[tuple[Hashable, list[int]]] = []

    def run(*names: str) -> Callable[[Halt], None]:
        def go(halt: Halt) -> None:
            for name in names:
                halt(name, None)

        return go

    in_step([run("a", "b"), run("a", "c", "d")], lambda key, here: keys.append((key, sorted(here))))
    assert keys == [("a", [0, 1]), ("b", [0]), ("c", [1]), ("d", [1])]


class Twice(nn.Module):
    """Its embedding is computed at the beginning, and again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed, self.mid = nn.Linear(4, 24), nn.Linear(24, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        y = torch.tanh(self.mid(torch.tanh(self.embed(h))))
        return self.out(y * torch.tanh(self.embed(h * 0.9)))  # type: ignore[no-any-return]


def test_a_layer_that_runs_again_is_fitted_to_all_that_it_reads() -> None:
    torch.manual_seed(0)
    net, data = Twice().eval(), [torch.randn(64, 4) for _ in range(3)]
    graph, plan = cut(net, data[0][:2], 0.25)
    ran: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        ran.append(len(batch))
        return model(batch).square().mean()  # type: ignore[no-any-return]

    fixed = compensated(graph, net, plan, Obs(damping=1e-12, weigh=False), data=data, loss=loss)
    assert len(ran) == 1 + 3 * len(data)  # and once for what it reads later
    assert not torch.equal(fixed.get_parameter("embed.weight"), net.embed.weight)
    with torch.no_grad():
        h = torch.tanh(net.first(torch.cat(data)))
        reads = torch.cat([h, 0.9 * h])
        lost = set(plan.removed[next(name for name in plan.removed if name.startswith("first"))])
        kept = [c for c in range(24) if c not in lost]
        best = torch.linalg.lstsq(
            torch.cat([reads[:, kept], torch.ones(len(reads), 1)], 1).double(), net.embed(reads).double()
        ).solution
    torch.testing.assert_close(fixed.get_parameter("embed.weight")[:, kept].double().T, best[:-1], rtol=1e-3, atol=1e-4)
