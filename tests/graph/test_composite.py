"""Ops that PyTorch makes of others, and that have no rule of their own, are looked at by their parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune

LABELS = torch.zeros(2, dtype=torch.long)
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "another name": lambda y: torch.multiply(y, torch.negative(y)),
    "another name, in place": lambda y: y.clone().subtract_(1.0),
    "special": lambda y: torch.special.expit(y) * torch.special.softmax(y, 1),
    "matmul": lambda y: torch.linalg.matmul(y, y),
    "stacks": lambda y: torch.vstack([y, y])[:2],
    "nothing to do": torch.atleast_3d,
    "a norm": lambda y: y / (torch.linalg.norm(y, dim=1, keepdim=True) + 1),
    "renorm": lambda y: y.renorm(2, 0, 1.0),
    "several results": lambda y: torch.mul(*torch.broadcast_tensors(y, y.abs())),
    "a loss over all": lambda y: y * F.mse_loss(y, y.relu()),
    "a loss by element": lambda y: F.smooth_l1_loss(y, y.relu(), reduction="none"),
    "a slice written": lambda y: y.slice_scatter(y[..., :2], 3, 2, 4),
    "a place written": lambda y: y.select_scatter(y[..., 0], 3, 1),
}


class Between(nn.Module):
    """Two convolutions and an op."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.op = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1), op

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.op(self.a(x))).relu())


@pytest.mark.parametrize("case", CASES)
def test_the_parts_tell_what_is_coupled(case: str) -> None:
    torch.manual_seed(0)
    net = Between(CASES[case]).eval()
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=torch.randn(2, 3, 4, 4), progress=False)
    assert all(check.ok for check in fxprune.report(small).checks)
    assert small.a.out_channels == small.b.in_channels < 16
    assert fxprune.report(small).forward == "module"


def test_columns_side_by_side_are_channels_one_after_the_other() -> None:
    net = Between(lambda y: torch.hstack([y, -y]))
    net.b = nn.Conv2d(32, 8, 1)
    small = fxprune.prune(net.eval(), "magnitude", 0.3, example_inputs=torch.randn(2, 3, 4, 4), progress=False)
    assert small.b.in_channels == 2 * small.a.out_channels < 32


def test_parts_with_sizes_of_their_own_hold_what_they_touch() -> None:
    net = Between(lambda y: torch.kron(y, torch.ones(1, 1, 1, 2)))
    graph = fxprune.trace(net.eval(), torch.randn(2, 3, 4, 4))
    assert "aten::kron has no coupling rule" in str(graph.frozen())


def test_a_loss_in_the_forward_reaches_the_labels_and_not_the_features() -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.cross_entropy(self.b(self.a(x).relu()), LABELS)

    small = fxprune.prune(Trained().eval(), "magnitude", 0.3, example_inputs=torch.randn(2, 8), progress=False)
    assert small.a.out_features < 24
    assert small.b.out_features == 5
