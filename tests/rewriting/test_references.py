"""Weak references of a copy refer to its own modules."""

import weakref

import torch
from torch import Tensor, nn

import fxprune


class Referring(nn.Module):
    """A module that reaches its first layer, and another its parent, by weak references."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.child = nn.Linear(8, 32), nn.Linear(32, 4), nn.Module()
        self.first, self.child.up = weakref.ref(self.a), [weakref.ref(self)]

    def forward(self, x: Tensor) -> Tensor:
        first, up = self.first(), self.child.up[0]()
        assert first is not None
        assert up is not None
        y: Tensor = up.b(first(x).relu())
        return y


def test_a_pruned_model_refers_to_itself() -> None:
    torch.manual_seed(0)
    model, x = Referring(), torch.randn(3, 8)
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False, strict=True)
    assert small.first() is small.a
    assert small.child.up[0]() is small
    assert model.first() is model.a
    small(x).sum().backward()
    assert small.a.weight.grad is not None
    assert model.a.weight.grad is None


def test_outputs_without_numbers_compare_nothing() -> None:
    class Chosen(Referring):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(-1)

    small = fxprune.prune(Chosen(), "magnitude", 0.4, example_inputs=torch.randn(3, 8), progress=False)
    (check,) = fxprune.report(small).checks
    assert check.note == "nothing was compared: no output holds floating-point numbers"
