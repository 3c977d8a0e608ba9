"""A capture leaves the model as it was, whatever it holds."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from couplings import random_scores
from torch import Tensor, nn

from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.planning.planner import plan
from fxprune.rewriting.rewrite import rewrite
from fxprune.verification import check_dense, check_permutation


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_old_weight_norm() -> None:
    """It keeps a computed weight on the module, which copy.deepcopy refuses after a forward with gradients."""
    norm = nn.utils.weight_norm
    model = nn.Sequential(norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), norm(nn.Conv2d(16, 12, 3)), nn.Conv2d(12, 4, 1)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    model(inputs)
    graph = analyse(model, as_inputs(inputs))
    assert check_permutation(model, graph).ok
    planned = plan(graph, random_scores(graph), 0.4)
    small = rewrite(model, graph, planned).model
    assert check_dense(model, small, graph, planned).ok


class Remembering(nn.Module):
    """Keeps a table in a method's lru_cache, and installs hooks at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o, self.calls = nn.Linear(8, 16), nn.Linear(16, 3), 0

    @functools.lru_cache  # noqa: B019 - the habit that is tested
    def table(self, n: int) -> Tensor:
        return torch.arange(n) / n

    def forward(self, x: Tensor) -> Tensor:
        if not getattr(self, "hooked", False):
            self.hooked = True
            self.a.register_forward_hook(lambda m, args, out: out + 1)
        return self.o(self.a(x) + self.table(16))


def test_a_trace_leaves_no_memory_behind() -> None:
    """Else fake tensors or doubled hooks would meet the next call."""
    torch.manual_seed(0)
    net, x = Remembering().eval(), torch.randn(2, 8)
    want = copy.deepcopy(net)(x)
    analyse(net, ((x,), {}))
    assert not net.a._forward_hooks
    assert torch.equal(net(x), want)
    assert len(net.a._forward_hooks) == 1
