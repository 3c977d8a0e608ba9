"""of="memory": what the graph says is what a forward on the CPU holds, byte for byte."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.memory import memory_of


class Live(TorchDispatchMode):
    """Counts the bytes of storages that are alive, beside those given."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in self.known:
                storage = t.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return out

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def counted(model: nn.Module, x: Tensor) -> int:
    """Bytes of weights, the input, and the activations of one forward where these take most."""
    held = [*model.parameters(), *model.buffers(), x]
    own = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
    with torch.no_grad(), Live(held) as live:
        model(x)
    return sum(own.values()) + live.peak


class Residual(nn.Module):
    """In-place ops, a view, and a value that waits for its use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.a, self.b = nn.Conv2d(12, 24, 1), nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.stem(x)))
        y = self.b(F.silu(self.a(x)))
        y += x
        return self.head(y.mean((2, 3)))


class Skips(nn.Module):
    """A concatenation with what an earlier layer left, modules in modules."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2))
        self.up = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.up(torch.cat([self.middle(skip), skip], 1))


class Nested(nn.Module):
    """The caller of the inner modules holds what it gave them until they return."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Conv2d(24, 16, 1), nn.Conv2d(16, 24, 1))
        self.all = nn.Sequential(nn.Conv2d(3, 24, 1), inner, nn.Conv2d(24, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.all(x)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("cls", [Residual, Skips, Nested])
def test_memory_is_what_a_forward_holds(cls: type[nn.Module], ratio: float) -> None:
    torch.manual_seed(0)
    model, x = cls().eval(), torch.randn(2, 3, 16, 16)
    if ratio:
        model = fxprune.prune(model, "magnitude", ratio, example_inputs=x, progress=False)
    graph = fxprune.trace(model, x)
    assert memory_of(graph).total(np.zeros(len(graph.groups))) == counted(model, x)


@pytest.mark.parametrize("cls", [Residual, Skips])
def test_a_plan_knows_the_memory_of_its_result(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = cls().eval(), torch.randn(2, 3, 16, 16)
    small = fxprune.prune(model, "magnitude", 0.3, of="memory", example_inputs=x, progress=False)
    plan = fxprune.report(small).plan
    assert plan.costs["memory"] == (counted(model, x), counted(small, x))
    assert plan.achieved == pytest.approx(0.3, abs=0.1)


def test_steps_that_need_no_more_than_others_change_nothing() -> None:
    graph = fxprune.trace(Skips(), torch.randn(2, 3, 16, 16))
    memory = memory_of(graph)
    assert 0 < memory.alive.shape[0] < len(graph.traced.graph.nodes)
    costs = CostModel(graph)
    removed = np.array([len(g) // 2 for g in graph.groups], float)
    assert memory.total(removed) == costs.of("memory", removed) < memory.total(0 * removed)
