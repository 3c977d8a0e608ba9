"""What a network of the zoo is: a family, a builder and inputs; and weights that hide no mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Make = Callable[[int], Any]  # batch size -> tensor, tuple of arguments, dict of keyword arguments, or both as a pair


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: `library/module/...`, unique.
        family: the row of the table it counts in.
        make: builds the module, from a config with random weights.
        given: batch size -> example inputs, as `fxprune.prune` takes them.
        batch: the batch size that it is traced with.
        note: what exactly it is.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    given: Make
    batch: int = 1
    note: str = ""

    def build(self) -> nn.Module:
        """The module in eval mode, with weights that are the same every time (see `roughen`)."""
        torch.manual_seed(0)
        return roughen(self.make().eval())

    def inputs(self, batch: int | None = None) -> Inputs:
        """`(args, kwargs)`, the same every time."""
        torch.manual_seed(7)
        given = self.given(self.batch if batch is None else batch)
        if isinstance(given, dict):
            return (), given
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict):
            return given
        return (given if isinstance(given, tuple) else (given,)), {}


@torch.no_grad()
def roughen(model: nn.Module) -> nn.Module:
    """Noise on every parameter that is constant (zero gates, unit scales), and statistics on every batch norm.

    On constant weights a wrong permutation would go unseen.  Parameters that were never initialised are drawn anew.
    """
    noise = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=noise) / 10)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=noise) + 0.5)
    for p in model.parameters():
        if p.is_floating_point() and p.numel():
            p.requires_grad_(True)
            _roughen(p, noise)
    return model


def _roughen(p: Tensor, noise: torch.Generator) -> None:
    if not torch.isfinite(p).all():
        p.copy_(torch.randn(p.shape, generator=noise) / 50)
        return
    some = p.flatten()[:: max(1, p.numel() // 256)]
    if p.numel() > 1 and len(torch.unique(some)) <= max(2, len(some) // 2):
        scale = 0.1 if float(p.abs().max()) > 0.5 else 0.02
        p.add_((scale * torch.randn(p.shape, generator=noise)).to(p.dtype))


def tensors_in(value: Any) -> list[Tensor]:
    """All floating tensors in a model's output, in a fixed order; a decoder's cache, which only it reads, has none."""
    if isinstance(value, Cache):
        return []
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() or value.is_complex() else []
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_in(v)]
    if hasattr(value, "parameters") and isinstance(value.parameters, Tensor):  # a diffusers distribution
        return [value.parameters]
    if hasattr(value, "__dict__"):
        return [t for v in vars(value).values() for t in tensors_in(v)]
    return []
