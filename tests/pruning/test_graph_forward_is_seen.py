"""A rewritten graph that becomes the forward says so, and what to do; transposed convolutions and repeats in it."""

from __future__ import annotations

import copy
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.verification import check_dense


class Written(nn.Module):
    """A width that its Python has written down: there its own forward keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.f, self.g, self.o = nn.Linear(6, 32), nn.Linear(32, 12), nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.i(x)
        return self.o((h + self.g(self.f(h).relu())).view(len(x), 5, 32))


X = torch.randn(2, 5, 6)


def test_a_graph_forward_warns_and_can_be_made_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = Written()
    with pytest.warns(UserWarning, match=r"the rewritten graph becomes the forward of this Written") as told:
        small = fxprune.prune(dense, "magnitude", 0.7, example_inputs=X, progress=False)
    text = str(told[0].message)
    assert "neither fxprune.save nor torch.save" in text
    (most,) = re.findall(r"up to about ratio=(0\.\d\d)", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = fxprune.prune(dense, "magnitude", float(most), example_inputs=X, progress=False)
    assert fxprune.report(own).plan.achieved == pytest.approx(float(most), abs=0.05)
    assert fxprune.report(own).forward == "module"
    for write in (lambda: fxprune.save(small, tmp_path / "s"), lambda: torch.save(small, io.BytesIO())):
        with pytest.raises(fxprune.SaveError, match=r"fxprune\.apply\(dense, plan\)"):
            write()
    plan = fxprune.Plan.from_json(fxprune.report(small).plan.to_json())  # the way that the messages tell
    with pytest.warns(UserWarning, match="becomes the forward"):
        again = fxprune.apply(Written(), plan, example_inputs=X)
    again.load_state_dict(small.state_dict())
    again.eval(), small.eval()
    assert torch.equal(again(X), small(X))
    assert torch.equal(copy.deepcopy(small)(X), copy.copy(small)(X))


def test_a_graph_forward_learns_from_features() -> None:
    training = fxprune.Training(3, distill=fxprune.Distillation(features=1.0, layers=("i", "g"), projections=True))
    how = {"loss": lambda m, b: m(b).square().mean(), "data": [X], "example_inputs": X, "progress": False}
    with pytest.warns(UserWarning, match="becomes the forward"):
        small = fxprune.prune(Written(), "magnitude", 0.7, training=training, **how)
    assert fxprune.report(small).forward == "graph"
    assert len(fxprune.report(small).history) == 3


class Up(nn.Module):
    """A fixed filter repeated for every channel, in one of four ways, convolved or transposed."""

    def __init__(self, how: str, transposed: bool, c: int = 16) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 3, 3, padding=1)
        self.q, self.k = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.how, self.transposed = how, transposed
        self.register_buffer("fir", torch.ones(1, 1, 2, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        q, k = self.q(h).flatten(2), self.k(h).flatten(2)
        w = torch.einsum("ncq,nck->nqk", q, k / np.sqrt(k.shape[1])).softmax(2)  # a number that no trace can follow
        h = h + torch.einsum("nqk,nck->ncq", w, h.flatten(2)).reshape(h.shape)
        c = h.shape[1]
        made = {
            "tile": lambda: self.fir.tile([c, 1, 1, 1]),
            "repeat": lambda: self.fir.repeat(c, 1, 1, 1),
            "expand": lambda: self.fir.expand(c, 1, 2, 2),
            "interleave": lambda: self.fir.repeat_interleave(c, 0),
        }[self.how]()
        down = F.conv_transpose2d if self.transposed else F.conv2d
        return self.b(down(h, made, stride=2, groups=c))


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("how", ["tile", "repeat", "expand", "interleave"])
def test_a_graph_forward_follows_groups_and_repeats(how: str, transposed: bool) -> None:
    torch.manual_seed(0)
    net, x = Up(how, transposed), torch.randn(2, 3, 8, 8)
    graph = fxprune.trace(net, x)
    plan = fxprune.plan(graph, fxprune.score(graph, net, "magnitude"), 0.4)
    assert plan.removed["a.weight:0"]
    small = fxprune.rewrite(net, graph, plan, forward="graph").model
    assert check_dense(net, small, graph, plan).ok
    assert small(torch.randn(3, 3, 8, 8)).shape == net(torch.randn(3, 3, 8, 8)).shape


def test_the_report_of_two_cuts_tells_both() -> None:
    net = nn.Sequential(nn.Linear(6, 32), nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Linear(32, 4))
    dense = sum(p.numel() for p in net.parameters())
    x = torch.randn(2, 5, 6)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, attention="both", progress=False)
    told = fxprune.report(small)
    share = 1 - sum(p.numel() for p in small.parameters()) / dense
    assert told.total.achieved == pytest.approx(share)
    assert told.total.ratio == pytest.approx(0.4, abs=0.01)
    assert (
        repr(told).splitlines()[0]
        == f"Sequential: {share:.1%} of params went (asked 40.0%) in all, by 2 plans; the last:"
    )
    assert told.total.costs["params"] == (dense, sum(p.numel() for p in small.parameters()))
