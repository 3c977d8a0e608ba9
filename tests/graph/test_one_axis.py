"""Ops that fix one axis leave the others free: indices along nodes, reductions and distances over channels, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from proofs import proved
from torch import Tensor, nn

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs

Function = Callable[..., Tensor]


class Nodes(nn.Module):
    """Features of nodes, messages along edges."""

    def __init__(self, gathered: Function) -> None:
        super().__init__()
        self.a, self.b, self.c, self.gathered = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 4), gathered

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(self.gathered(h, self.b(h[edges[0]]), edges[1]).relu())


class Meet(nn.Module):
    """Two branches of equally many channels, and what is made of both."""

    def __init__(self, meet: Function, tail: int = 24) -> None:
        super().__init__()
        self.a, self.b, self.c, self.meet = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(tail, 4), meet

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.meet(self.a(x), self.b(x)))


def wide(to: Tensor, like: Tensor) -> Tensor:
    return to.view(-1, 1).expand_as(like)


def zeros(h: Tensor) -> Tensor:
    return torch.zeros_like(h)


def put(h: Tensor, m: Tensor, to: Tensor) -> Tensor:
    h = h.clone()
    h[to[: len(h)] > 5] = 0.5
    return h


def halves(x: Tensor) -> Tensor:
    n = x.shape[-1] // 2
    return x.narrow(-1, 0, n) * x.narrow(-1, n, x.shape[-1] - n)


NODES: dict[str, Function] = {
    "index_add": lambda h, m, to: zeros(h).index_add(0, to, m),
    "index_copy": lambda h, m, to: h.index_copy(0, to[:3], m[:3]),
    "index_fill": lambda h, m, to: h.index_fill(0, to[:2], 1.0),
    "index_reduce": lambda h, m, to: zeros(h).index_reduce(0, to, m, "amax"),
    "scatter": lambda h, m, to: zeros(h).scatter(0, wide(to, m), m),
    "scatter_add": lambda h, m, to: zeros(h).scatter_add(0, wide(to, m), m),
    "scatter_mean": lambda h, m, to: zeros(h).scatter_reduce(0, wide(to, m), m, "mean"),
    "scatter_max": lambda h, m, to: zeros(h).scatter_reduce(0, wide(to, m), m, "amax", include_self=False),
    "take_along_dim": lambda h, m, to: torch.take_along_dim(h, wide(to[:12], h), 0),
    "topk": lambda h, m, to: h.topk(5, dim=0)[0],
    "argmax": lambda h, m, to: h * h.argmax(0, keepdim=True).float(),
    "mask": lambda h, m, to: zeros(h)[:1] + h[to[:12] > 3].sum(0),
    "mask_write": put,
}
MEETS: dict[str, tuple[Function, int]] = {
    "dot": (lambda a, b: (a * b).sum(-1, keepdim=True), 1),
    "vdot": (lambda a, b: torch.stack([torch.vdot(x, y) for x, y in zip(a[0], b[0], strict=True)])[:, None], 1),
    "einsum": (lambda a, b: torch.einsum("bnc->bn", a * b)[..., None], 1),
    "norm": (lambda a, b: torch.linalg.vector_norm(a + b, dim=-1, keepdim=True), 1),
    "norm1": (lambda a, b: (a + b).norm(p=1, dim=-1, keepdim=True), 1),
    "distance": (lambda a, b: F.pairwise_distance(a, b, keepdim=True), 1),
    "mean": (lambda a, b: (a * b).mean(-1, keepdim=True), 1),
    "amax": (lambda a, b: (a * b).amax(-1, keepdim=True), 1),
    "min": (lambda a, b: (a * b).min(-1, keepdim=True)[0], 1),
    "logsumexp": (lambda a, b: (a * b).logsumexp(-1, keepdim=True), 1),
    "std": (lambda a, b: (a * b).std(-1, keepdim=True), 1),
    "stride": (lambda a, b: torch.cat([a[..., ::2] * b[..., 1::2], b[..., ::3]], -1), 20),
    "narrow": (lambda a, b: halves(a) * halves(b), 12),
    "tensor_split": (lambda a, b: a.tensor_split(3, -1)[0] * b.tensor_split(3, -1)[2], 8),
    "hsplit": (lambda a, b: torch.hsplit(a[0], 2)[1] * torch.hsplit(b[0], 2)[0], 12),
}


@pytest.mark.parametrize("name", sorted(NODES))
def test_features_of_nodes_are_free(name: str) -> None:
    torch.manual_seed(0)
    given = torch.randn(12, 8), torch.cat([torch.arange(12), torch.randint(0, 12, (18,))])[None].repeat(2, 1)
    proved(Nodes(NODES[name]), given)


def test_scattered_axis_stays() -> None:
    """Nodes that are parameters are written by value: they are frozen, with that reason."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nodes, self.out = nn.Parameter(torch.randn(12, 8)), nn.Linear(8, 2)

        def forward(self, x: Tensor, to: Tensor) -> Tensor:
            return self.out(self.nodes.index_add(0, to, x)[to])

    graph = fxprune.trace(Table(), (torch.randn(5, 8), torch.arange(5)))
    (held,) = [h for h in graph.frozen() if h.tensor == "nodes" and h.axis == 0]
    assert held.cause == "indexed by value"


@pytest.mark.parametrize("name", sorted(MEETS))
def test_channels_that_meet_in_one_number_are_free(name: str) -> None:
    torch.manual_seed(0)
    meet, tail = MEETS[name]
    reduced = proved(Meet(meet, tail), torch.randn(2, 5, 8))
    exact = name not in ("mean", "amax", "min", "logsumexp", "std")
    assert (reduced == ()) == exact
    assert exact or "of 24 channels" in reduced[0]


def test_reductions_are_reported() -> None:
    """As a norm that is regrouped is: the user sees which mean is now taken over fewer channels."""
    net = Meet(*MEETS["amax"])
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=torch.randn(2, 5, 8), progress=False)
    assert "over what stays: aten::amax over" in repr(fxprune.report(small))


def test_exact_norms_holds_means_over_channels() -> None:
    """Channels over which a maximum is taken stay under `exact_norms=True`."""
    net = Meet(MEETS["amax"][0], 1)
    with pytest.raises(fxprune.BudgetError, match=r"at most 0\.0% can"):
        fxprune.prune(net, "magnitude", 0.3, example_inputs=torch.randn(2, 5, 8), exact_norms=True, progress=False)


def test_places_of_maxima_freeze() -> None:
    """Where the place of the maximum is used, it would be another one among fewer channels."""
    net = Meet(lambda a, b: (a * b).max(-1, keepdim=True)[1].float(), 1)
    assert {h.cause for h in fxprune.trace(net, torch.randn(2, 5, 8)).frozen()} >= {"reduction over channels"}


def test_median_freezes() -> None:
    net = Meet(lambda a, b: (a * b).median(-1, keepdim=True)[0], 1)
    assert "reduction over channels" in {h.cause for h in fxprune.trace(net, torch.randn(2, 5, 8)).frozen()}


def test_steps_that_do_not_divide_freeze() -> None:
    net = Meet(lambda a, b: a[..., ::5] * b[..., ::5], 5)
    whys = {h.why for h in fxprune.trace(net, torch.randn(2, 5, 8)).frozen()}
    assert "is read in steps of 5, which do not divide it" in whys


class Deformed(nn.Module):
    def __init__(self, groups: int, blocks: int, mask: bool) -> None:
        super().__init__()
        self.a, self.f = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 27 * blocks, 3, padding=1)
        self.d, self.o = torchvision.ops.DeformConv2d(16, 24, 3, padding=1, groups=groups), nn.Conv2d(24, 3, 1)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        f = self.f(x)
        n = f.shape[1] // 3 * 2
        return self.o(self.d(self.a(x).relu(), f[:, :n], f[:, n:].sigmoid() if self.mask else None).relu())


@pytest.mark.parametrize(("groups", "blocks", "mask"), [(1, 1, False), (1, 2, True), (2, 1, True)])
def test_deformable_convolutions(groups: int, blocks: int, mask: bool) -> None:
    torch.manual_seed(0)
    proved(Deformed(groups, blocks, mask), torch.randn(1, 3, 6, 6))


class Recurrent(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 24, proj_size=12, batch_first=True, **kwargs)
        self.out = nn.Linear(24 if kwargs.get("bidirectional") else 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


@pytest.mark.parametrize("kwargs", [{}, {"num_layers": 2}, {"bidirectional": True, "bias": False}])
def test_projected_lstm(kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Recurrent(**kwargs)
    groups = analyse(net, as_inputs(torch.randn(2, 5, 8))).groups
    assert sorted(map(len, groups)) == [12, 24]
    proved(net, torch.randn(2, 5, 8))
    small = fxprune.prune(net, "random", 0.3, example_inputs=torch.randn(2, 5, 8), progress=False).lstm
    assert small.hidden_size == small.weight_hr_l0.shape[1]
    assert small.proj_size == small.weight_hr_l0.shape[0]
