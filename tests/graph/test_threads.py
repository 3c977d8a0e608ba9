"""Threads take turns: each gets the result that it would get alone, and no model is left changed."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune.graph.turns import in_turn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def pruned(model: nn.Module, ratio: float, criterion: str) -> nn.Module:
    return fxprune.prune(model, criterion, ratio, example_inputs=X[:1], data=[X], loss=loss, progress=False)


def test_threads_on_one_model_and_on_two() -> None:
    shared, own = net(0).eval(), net(1)
    jobs = [(shared, 0.3, "taylor"), (shared, 0.5, "magnitude"), (own, 0.4, "taylor"), (shared, 0.3, "taylor")]
    want = [pruned(*job) for job in jobs]
    got: dict[int, Any] = {}

    def work(k: int) -> None:
        try:
            got[k] = pruned(*jobs[k])
        except Exception as e:  # noqa: BLE001 - it is what the thread found
            got[k] = e

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k, small in enumerate(want):
        assert isinstance(got[k], nn.Module), got[k]
        assert all(map(torch.equal, small.state_dict().values(), got[k].state_dict().values()))
    assert {type(p) for p in (*shared.parameters(), *own.parameters())} == {nn.Parameter}
    assert own.training
    assert not shared.training


def test_another_thread_waits_and_the_same_one_does_not() -> None:
    inside = threading.Event()

    def work() -> None:
        fxprune.trace(net(0), X[:1])
        inside.set()

    thread = threading.Thread(target=work)
    with in_turn:
        thread.start()
        fxprune.trace(net(1), X[:1])
        assert not inside.wait(0.05)
    thread.join()
    assert inside.is_set()
