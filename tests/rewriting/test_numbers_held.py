"""Widths that a module keeps elsewhere than in an attribute of its own follow the plan, and come back from a folder."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune


@dataclasses.dataclass(frozen=True)
class Frozen:
    width: int = 32


class Helper:
    """What cuts for its module."""

    def __init__(self, width: int) -> None:
        self.width = width


class Held(nn.Module):
    """Its forward reads a width from `read`."""

    def __init__(self, holder: Any, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.holder, self.read = holder, read
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).reshape(-1, self.read(self)).relu())


class OfClass(Held):
    width = 32


HOLDERS: dict[str, tuple[Callable[[], Held], Callable[[Any], Any]]] = {
    "a frozen dataclass": (lambda: Held(Frozen(), lambda m: m.holder.width), lambda m: m.holder.width),
    "a namespace": (lambda: Held(types.SimpleNamespace(width=32), lambda m: m.holder.width), lambda m: m.holder.width),
    "a helper": (lambda: Held(Helper(32), lambda m: m.holder.width), lambda m: m.holder.width),
    "a dict": (lambda: Held({"width": 32, 3: 4}, lambda m: m.holder["width"]), lambda m: m.holder["width"]),
    "the class": (lambda: OfClass(None, lambda m: m.width), lambda m: m.width),
    "numpy": (lambda: Held(np.int64(32), lambda m: m.holder), lambda m: m.holder),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_width_is_brought_along_wherever_it_is_kept(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, width = HOLDERS[name]
    model, x = make(), torch.randn(3, 8)
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False, strict=True)
    assert small.a.out_features < 32
    assert width(small) == small.a.out_features
    assert width(model) == 32
    assert OfClass.width == 32
    again = fxprune.load(fxprune.save(small, tmp_path / "m"), model=make())
    assert width(again) == width(small)
    assert torch.equal(again(x), small(x))


def test_what_the_class_says_is_not_left_on_the_given_model() -> None:
    model = OfClass(None, lambda m: m.width)
    fxprune.trace(model, torch.randn(3, 8))
    assert "width" not in model.__dict__
