"""A large model's gradients lie where they take no memory, and the scores are the same to the last bit."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.criteria.fisher import Fisher
from fxprune.criteria.gradflow import GradFlow
from fxprune.criteria.taylor import Taylor
from fxprune.errors import CriterionError
from fxprune.masking import trials
from fxprune.scoring import storage
from fxprune.scoring.backward import backward
from fxprune.scoring.elementwise import BLOCK, Elementwise
from fxprune.scoring.storage import InMemory, OnDisk, Rows, Sums

CRITERIA = [
    "taylor", Taylor(signed=True), Taylor(per_sample=True), "snip", "diff_pruning", "fisher", Fisher(per_sample=False),
    GradFlow("finite_difference"), GradFlow("exact"), GradFlow("exact", horizon=math.inf),
    GradFlow("exact", form="literal"),
]  # fmt: skip


class Tied(nn.Module):
    """A scalar, a weight that is used twice, one that is never used, convolutions; checkpoints of either kind."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 12, 3)
        self.twice = nn.Conv2d(12, 12, 1)
        self.idle = nn.Linear(4, 4)
        self.leave = nn.Linear(12, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).tanh()
        for _ in range(2):
            x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.leave(x.mean((2, 3))) * self.scale

    def block(self, x: Tensor) -> Tensor:
        return self.twice(x).sigmoid()


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    return (net(batch) - 1).square().mean()


@functools.cache
def traced(dtype: torch.dtype) -> fxprune.ChannelGraph:
    return fxprune.trace(Tied().to(dtype), torch.ones(1, 3, 8, 8, dtype=dtype))


def scored(criterion: Any, reentrant: bool | None = None, dtype: torch.dtype = torch.float32) -> fxprune.Scores:
    torch.manual_seed(0)
    net = Tied(reentrant).to(dtype)
    x = torch.randn(3, 3, 8, 8, dtype=dtype)
    before = [p.detach().clone() for p in net.parameters()]
    made = fxprune.score(traced(dtype), net, criterion, data=[x, x[:2] + 1], loss=loss)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, net.parameters(), strict=True))
    return made


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_scores_are_the_same_wherever_gradients_lie(criterion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = scored(criterion)
    made: list[OnDisk] = []
    monkeypatch.setattr(storage, "LARGE", 0)
    monkeypatch.setattr(storage, "OnDisk", lambda forms: made.append(OnDisk(forms)) or made[-1])
    assert scored(criterion) == beside
    assert made


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("criterion", ["taylor", "fisher", GradFlow("finite_difference")], ids=str)
def test_checkpoints_change_nothing(criterion: Any, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scored(criterion)
    monkeypatch.setattr(storage, "LARGE", 0)
    got = scored(criterion, reentrant)
    for name, values in plain.values.items():
        assert got.values[name] == pytest.approx(values, rel=1e-3)


def test_half_precision_weights_have_sums_in_float32() -> None:
    sums = Sums({"w": torch.zeros(2, dtype=torch.bfloat16)})
    for _ in range(300):
        sums.add("w", torch.ones(2, dtype=torch.bfloat16))
    assert sums.settle(1)["w"].tolist() == [300, 300]  # bfloat16 stops at 256
    assert scored("taylor", dtype=torch.bfloat16).values


def test_no_gradient_outlives_its_turn() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    held: list[int] = []

    def visit(name: str, gradient: Tensor) -> None:
        held.append(sum(p.grad is not None for p in net.parameters()))

    assert backward(net(torch.ones(1, 8)).sum(), net, dict(net.named_parameters()), visit) == 10
    assert held == [0] * 10
    kept = net[0].weight.grad = torch.ones(8, 8)
    backward(net(torch.ones(1, 8)).sum(), net, dict(net.named_parameters()), visit)
    assert net[0].weight.grad is kept
    assert bool((kept == 1).all())
    assert net[1].weight.grad is None


def test_blocks_are_read_from_the_file_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGE", 0)
    weight, gradient = torch.randn(2, 3 * BLOCK // 16, 16)
    sums = Sums({"w": weight})
    sums.add("w", gradient.clone())
    sums.settle(2)
    read: list[int] = []
    whole = sums.rows
    monkeypatch.setattr(sums, "rows", lambda *a: (r := whole(*a), read.append(len(r)))[0])
    got = Elementwise(weight, torch.mul, (Rows(sums, "w"),)).fold([1])
    torch.testing.assert_close(got, (weight * gradient / 2).sum(1))
    assert len(read) == 3
    assert torch.equal(whole("w", 5, 9), gradient[5:9] / 2)


def test_a_disk_without_room_leaves_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGE", 0)
    forms = storage.forms_of({"w": torch.ones(4)})
    assert isinstance(storage.store(forms), OnDisk)
    monkeypatch.setattr(storage, "SPARE", 1 << 60)
    assert isinstance(storage.store(forms), InMemory)


def test_a_disk_that_refuses_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    held = OnDisk(storage.forms_of({"w": torch.ones(4)}))
    told = rf"for w could not be kept in .*{tempfile.gettempdir()}: .*No space left.*; set TMPDIR to one with"
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(held, "_file", full)
        with pytest.raises(CriterionError, match=told):
            held.put("w", torch.ones(4))


def test_a_proof_in_float64_needs_no_second_set_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 2)).eval()
    x, own = torch.randn(3, 8, dtype=torch.float64), [p.data_ptr() for p in net.parameters()]
    with trials.in_float64(net):
        expected = net(x)
        assert [p.data_ptr() for p in net.parameters()] != own
    monkeypatch.setattr(trials, "LARGE", 0)
    with trials.in_float64(net):
        assert torch.equal(net(x), expected)
        assert net[0].weight.dtype == torch.float64
        assert [p.data_ptr() for p in net.parameters()] == own
    with pytest.raises(RuntimeError):
        net(x)
    y = net(x.float())
    with trials.rounded_anew(net):
        assert 0 < float((net(x.float()) - y).abs().max()) < 1e-5
    assert torch.equal(net(x.float()), y)


MEASURE = """
import json, resource, sys, torch
from pathlib import Path
import fxprune
from fxprune.scoring import storage
storage.LARGE = int(sys.argv[1])
torch.manual_seed(0)
net = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(30)))
graph = fxprune.trace(net, torch.randn(1, 1024))
held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
fxprune.score(graph, net, sys.argv[2], data=[torch.randn(2, 1024)] * 2, loss=lambda m, x: m(x).square().mean())
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps((int(status["VmHWM"].split()[0]) * 1024 - held) / sum(4 * p.numel() for p in net.parameters())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("criterion", ["taylor", "gradflow"])
def test_a_large_models_gradients_take_little_memory(criterion: str) -> None:
    """Of 120 MB of weights: what scoring takes beside them, in sets of gradients."""
    command = [sys.executable, "-c", MEASURE, "0", criterion]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) < 0.7
