"""Seeded tensors where a model lives: drawn on the CPU, so that a seed gives the same numbers on every device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a model's first floating-point parameter (the CPU and float32 where it has none)."""
    for p in model.parameters():
        if p.is_floating_point():
            return p.device, p.dtype
    return torch.device("cpu"), torch.float32


def draw(model: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers on the model's device, in its dtype."""
    device, dtype = place(model)
    return torch.randn(shape, generator=generator).to(device, dtype)


def draw_integers(model: nn.Module, shape: tuple[int, ...], below: int, generator: torch.Generator) -> Tensor:
    """Uniform integers in [0, below), int64, on the model's device."""
    return torch.randint(below, shape, generator=generator).to(place(model)[0])
