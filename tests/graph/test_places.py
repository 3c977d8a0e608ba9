"""Ops that hang on order and places along channels hold them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError

HOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "rot90": lambda y: torch.rot90(y, 1, (1, 2)),
    "tril": lambda y: y.tril(),
    "triu": lambda y: y.triu(1),
    "diagonal": lambda y: y.diagonal(dim1=1, dim2=2),
    "diag_embed": lambda y: torch.diag_embed(y).sum(-1) * torch.arange(16.0),
    "argsort": lambda y: y * y.argsort(-1),
    "quantile": lambda y: torch.quantile(y, 0.5, -1),
    "several quantiles": lambda y: torch.quantile(y, torch.tensor([0.2, 0.5]), -1),
    "trapezoid": lambda y: torch.trapezoid(y, dim=-1),
    "over unequal steps": lambda y: torch.trapezoid(y, torch.arange(16.0) ** 2, dim=-1),
    "borders": lambda y: torch.bucketize(torch.ones(3), y.mean((0, 1)).sort()[0]),
    "stft": lambda y: torch.stft(y.flatten(0, 1), 8, window=torch.ones(8), return_complex=True).abs(),
}


class Held(nn.Module):
    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.op = nn.Linear(4, 16), op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self.inner(x))


if torch.__version__ < "2.12":  # whose fake tensors know no quantile
    HOLDS = {name: op for name, op in HOLDS.items() if "quantile" not in name}


@pytest.mark.parametrize("case", HOLDS)
def test_places_along_channels_hold_them(case: str) -> None:
    model = Held(HOLDS[case])
    with pytest.raises(BudgetError, match="nothing in this Held can be pruned"):
        fxprune.prune(model, "magnitude", 0.3, example_inputs=torch.randn(2, 16, 4), progress=False)
