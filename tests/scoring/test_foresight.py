"""What H g needs is known before it is computed, and decides how; the tests say how much memory is free."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.criteria.gradflow import GradFlow
from fxprune.errors import CriterionError
from fxprune.scoring import foresight
from fxprune.scoring.context import Context
from fxprune.scoring.foresight import bounded, rehearsed, way_that_fits
from fxprune.scoring.free_memory import free_memory

CPU = torch.device("cpu")


class Deep(nn.Module):
    """Activations outweigh the weights."""

    def __init__(self, width: int = 16, depth: int = 6) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.leave = nn.Linear(width, 1)
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = checkpoint(self.block, layer, x, use_reentrant=False) if self.checkpointed else self.block(layer, x)
        return self.leave(x.mean((2, 3)))

    def block(self, layer: nn.Module, x: Tensor) -> Tensor:
        return x + torch.tanh(torch.nn.functional.silu(torch.sigmoid(layer(x))))


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    return (net(batch) - 1).square().mean()


def context(batch: int = 8, **options: Any) -> Context:
    torch.manual_seed(0)
    net = Deep()
    given = {"loss_function": loss, **options}
    data = given.pop("data", [torch.randn(batch, 3, 16, 16)])
    return Context(fxprune.trace(net, torch.randn(1, 3, 16, 16)), net, "gradflow", data, **given)


def test_needs_grow_with_the_batch_and_a_second_pass_needs_more() -> None:
    for estimate in (bounded, rehearsed):
        one, four = (estimate(context(n)) for n in (4, 16))
        assert one is not None
        assert four is not None
        assert 3 < four.exact / one.exact < 4.1
        assert four.finite_difference is not None
        assert four.exact > 1.5 * four.finite_difference


def test_checkpoints_lower_what_is_rehearsed() -> None:
    plain, checkpointed = context(), context()
    checkpointed.model.checkpointed = True  # type: ignore[assignment]
    needs = [rehearsed(c) for c in (plain, checkpointed)]
    assert needs[0] is not None
    assert needs[1] is not None
    assert needs[1].finite_difference < 0.75 * needs[0].finite_difference  # type: ignore[operator]


def test_a_rehearsal_leaves_model_and_random_state_alone() -> None:
    ctx = context(loss_function=lambda m, b: loss(m, b + torch.randn_like(b)))
    before, state = dict(ctx.model.named_parameters()), torch.get_rng_state()
    assert rehearsed(ctx) is not None
    after = dict(ctx.model.named_parameters())
    assert all(after[n] is p and p.grad is None for n, p in before.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_looks_at_values_is_bounded_by_the_graph() -> None:
    ctx = context(loss_function=lambda m, b: loss(m, b) * (2.0 if float(m(b).sum().detach()) > 0 else 1.0))
    assert rehearsed(ctx) is None
    assert "would take" in way_that_fits(ctx, lambda _: int(bounded(ctx).exact) - 1)


def test_auto_takes_the_way_that_fits() -> None:
    ctx = context()
    needs = rehearsed(ctx)
    assert needs is not None
    assert needs.finite_difference is not None
    assert way_that_fits(ctx, lambda _: None) == ""
    assert way_that_fits(ctx, lambda _: int(needs.exact) + 1) == ""
    told = way_that_fits(ctx, lambda _: int(needs.exact) - 1)
    assert told.startswith("the second backward pass would take")
    with pytest.raises(CriterionError, match=r"'gradflow' needs about \d+ MiB .* and \d+ MiB are free on cpu; pass"):
        way_that_fits(ctx, lambda _: int(needs.finite_difference) - 1)  # type: ignore[arg-type]


def test_half_precision_has_no_cheaper_way() -> None:
    ctx = context()
    ctx.model.bfloat16()
    assert bounded(ctx).finite_difference is None
    with pytest.raises(CriterionError, match=r"smaller batches .* gradient checkpointing, .*'taylor'"):
        way_that_fits(ctx, lambda _: 1)


def test_score_asks_before_it_computes_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    needs = rehearsed(ctx)
    assert needs is not None
    calls: list[int] = []

    def counted(net: nn.Module, batch: Tensor) -> Tensor:
        calls.append(not any(isinstance(p, torch._subclasses.FakeTensor) for p in net.parameters()))
        return loss(net, batch)

    given: dict[str, Any] = {"data": list(ctx.batches), "loss": counted}
    monkeypatch.setattr(foresight, "free_memory", lambda _: 1)
    with pytest.raises(CriterionError, match="smaller batches"):
        fxprune.score(ctx.graph, ctx.model, **given)
    assert not any(calls)
    monkeypatch.setattr(foresight, "free_memory", lambda _: int(needs.exact) - 1)
    tight = fxprune.score(ctx.graph, ctx.model, **given)
    assert any("finite difference of gradients: the second backward pass would take" in n for n in tight.notes)
    asked = fxprune.score(ctx.graph, ctx.model, GradFlow("finite_difference"), **given)
    assert {n: v.tolist() for n, v in tight.values.items()} == {n: v.tolist() for n, v in asked.values.items()} != {}
    monkeypatch.setattr(foresight, "free_memory", lambda _: 1 << 40)
    assert fxprune.score(ctx.graph, ctx.model, **given).notes == ("H g by a second backward pass",)


MEASURE = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_foresight import context
from fxprune.criteria.gradflow import GradFlow
from fxprune.scoring.foresight import bounded, rehearsed
import fxprune
ctx = context(400)
needs = rehearsed(ctx)
for method in ("finite_difference", "exact"):
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    fxprune.score(ctx.graph, ctx.model, GradFlow(method), data=list(ctx.batches), loss=ctx.loss_function)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    taken = int(status["VmHWM"].split()[0]) * 1024 - held  # ru_maxrss would count what the parent held before exec
    print(json.dumps([getattr(needs, method), getattr(bounded(ctx), method), taken]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimates_hold_within_a_factor_of_two() -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(Path(__file__).parent)], check=True, capture_output=True, text=True
    )
    for rehearsal, bound, taken in map(json.loads, run.stdout.splitlines()):
        assert 0.5 < rehearsal / taken < 2
        assert bound > 0.9 * taken


def test_free_memory_is_the_least_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    inner = groups / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.setattr("fxprune.scoring.free_memory.PROC", proc)
    monkeypatch.setattr("fxprune.scoring.free_memory.CGROUP", groups)
    assert free_memory(CPU) is None
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert free_memory(CPU) == 5000 * 1024
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("1000\n")
    assert free_memory(CPU) == 5000 * 1024
    (groups / "outer" / "memory.max").write_text("10000\n")
    (groups / "outer" / "memory.current").write_text("7000\n")
    (groups / "outer" / "memory.stat").write_text("anon 6000\ninactive_file 500\n")
    assert free_memory(CPU) == 3500
    assert free_memory(torch.device("meta")) is None
