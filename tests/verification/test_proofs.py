"""What a proof says: zeros prove nothing, tolerances follow the model's rounding, small real errors are caught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.verification import Check, check_dense, check_permutation

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 2))


class Gated(nn.Module):
    """Branches behind numbers that start at zero: a scale, a norm's weight, a modulation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.norm = (
            nn.Linear(8, 16),
            nn.Linear(16, 24),
            nn.Linear(24, 16),
            nn.LayerNorm(16),
        )
        self.gate, self.head, self.scale = nn.Linear(8, 16), nn.Linear(16, 3), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.scale * self.norm(self.down(torch.relu(self.up(h)))) + self.gate(x) * h.sin()
        return self.head(h)


def gated(zero: str) -> Gated:
    torch.manual_seed(0)
    net = Gated()
    for p in (net.scale, net.norm.weight):
        nn.init.uniform_(p, 0.5, 1.5)
    for p in net.get_submodule(zero).parameters() if zero != "scale" else [net.scale]:
        nn.init.zeros_(p)
    return net


def pruned(net: nn.Module, x: Tensor = X) -> tuple[nn.Module, fxprune.ChannelGraph, fxprune.Plan]:
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    return small, fxprune.trace(net, x), fxprune.report(small).plan


@pytest.mark.parametrize("zero", ["scale", "norm", "gate", "head"])
def test_what_zeros_hide_is_compared(zero: str) -> None:
    net = gated(zero)
    small, graph, plan = pruned(net)
    before = {n: p.clone() for n, p in net.named_parameters()}
    assert all(check.ok for check in fxprune.verify(net, small, graph, plan))
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    with torch.no_grad():
        small.get_submodule("up").weight.normal_()  # type: ignore[union-attr,operator]
    with pytest.raises(fxprune.VerifyError, match=r"masked = dense: relative error"):
        fxprune.verify(net, small, graph, plan)


def test_a_wrong_coupling_behind_a_zero_head_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    net = gated("head")
    graph = fxprune.trace(net, X)
    assert check_permutation(net, graph).ok
    monkeypatch.setattr(type(graph), "groups", tuple(graph.groups[:1]), raising=False)
    orders = {0: torch.randperm(len(graph.groups[0])).numpy()}
    lost = fxprune.Group(graph.groups[0].name, graph.groups[0].components, graph.groups[0].slices[:1])
    graph.groups = (lost, *graph.groups[1:])
    monkeypatch.setattr("fxprune.verification.permutation", lambda *_: orders)
    assert not check_permutation(net, graph).ok


def test_outputs_that_zeros_keep_at_zero_compare_nothing_and_it_is_said() -> None:
    net = mlp()
    nn.init.zeros_(net[4].weight)
    nn.init.zeros_(net[4].bias)
    told = fxprune.report(pruned(net)[0])
    assert "zero weights make zero were compared with random ones" in repr(told)

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * 0.0

    small, graph, plan = pruned(Silent())
    checks = fxprune.verify(Silent(), small, graph, plan)
    assert all("nothing was compared: every output is zero on these inputs" in str(c) for c in checks)


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 2e-4])
def test_a_small_real_error_is_caught(size: float) -> None:
    net = mlp()
    small, graph, plan = pruned(net)
    with torch.no_grad():
        small[2].weight.mul_(1 + size)  # type: ignore[index,union-attr,operator]
    with pytest.raises(fxprune.VerifyError, match="the same in float64"):
        fxprune.verify(net, small, graph, plan)


class Cancelling(nn.Module):
    """Differences of large numbers: in float32 nothing but rounding is left of three digits."""

    def __init__(self, insists: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.insists = insists

    def forward(self, x: Tensor) -> Tensor:
        if self.insists and x.dtype != torch.float32:
            raise TypeError("float32 only")
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(h * 300 + 1e2) - self.c(h * 300 + 1e2 + 1e-1 * h.sin())


def cancelling(**options: Any) -> Cancelling:
    torch.manual_seed(0)
    return Cancelling(**options)


def test_rounding_is_no_error() -> None:
    net = cancelling()
    small, graph, plan = pruned(net)
    check = check_dense(net, small, graph, plan)
    assert check.ok
    assert check.tolerance == 1e-8
    assert "in float64" in str(check)
    with torch.no_grad():
        small.get_submodule("a").weight.mul_(1.001)  # type: ignore[union-attr,operator]
    assert not check_dense(net, small, graph, plan).ok


def test_where_float64_does_not_run_the_noise_is_measured() -> None:
    net = cancelling(insists=True)
    small, graph, plan = pruned(net)
    check = check_dense(net, small, graph, plan)
    assert check.ok
    assert "rounding noise of the model" in str(check)
    with torch.no_grad():
        small.get_submodule("a").weight.mul_(1.3)  # type: ignore[union-attr,operator]
    assert not check_dense(net, small, graph, plan).ok


class Attention(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return x + self.out((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v)


def test_verify_and_rewrite_take_the_steps_that_a_plan_took() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(2, 5, 6)
    held = fxprune.trace(net, x).revised(["coarser"])
    plan = fxprune.plan(held, fxprune.score(held, net, "magnitude"), 0.3)
    small = fxprune.rewrite(net, held, plan).model
    assert plan.traced[1:] == ("coarser",)
    assert all(c.ok for c in fxprune.verify(net, small, fxprune.trace(net, x), plan))
    again = fxprune.rewrite(net, fxprune.trace(net, x), plan).model
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), small.parameters(), strict=True))


class Heads(nn.Module):
    """Four heads of eight dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 96), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_plan_for_other_units_of_attention_says_how_to_trace() -> None:
    net, x = Heads(), torch.randn(2, 5, 6)
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=x, attention="head_dim", progress=False)
    plan = fxprune.report(small).plan
    with pytest.raises(fxprune.PlanError, match=r"attention='head_dim'\)"):
        fxprune.verify(net, small, fxprune.trace(net, x), plan)
    assert all(c.ok for c in fxprune.verify(net, small, fxprune.trace(net, x, attention="head_dim"), plan))


def test_a_check_prints_its_note() -> None:
    assert str(Check("p", 0.0, 1e-4, "told")) == "p: relative error 0.0e+00 (ok); told"
