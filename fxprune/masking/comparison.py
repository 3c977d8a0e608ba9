"""Outputs of models side by side: how far two correct computations may differ, and how far these do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.graph.modules import Inputs, evaluating, same_draws

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def tolerance(model: nn.Module) -> float:
    """How far two correct computations may differ, for the model's coarsest floating type."""
    types = {p.dtype for p in model.parameters()} & set(TOLERANCE)
    return max((TOLERANCE[t] for t in types), default=1e-4)


def relative_error(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Largest |a - b| over largest finite |b|, over all floating tensors; infinite where shapes or finiteness differ.

    Infinities of the same sign (scores that a mask rules out) are equal; NaN is equal to nothing.
    """
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not isinstance(y, torch.Tensor):
            continue
        if not isinstance(x, torch.Tensor) or x.shape != y.shape:
            return float("inf")
        if not (y.is_floating_point() or y.is_complex()) or not y.numel():
            continue
        open_ = ~((x == y) & y.isinf())
        x, y = x[open_], y[open_]
        if not y.numel():
            continue
        error = float((x - y).abs().max()) / max(1e-6, float(y.abs().max()))
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def overflow(values: Sequence[Any]) -> bool:
    """Whether outputs hold NaN or +inf, or no finite number: nothing can be proved of them.  (-inf is a mask's.)"""
    floating = [t for t in values if isinstance(t, torch.Tensor) and t.is_floating_point() and t.numel()]
    over = any(bool((t.isnan() | t.isposinf()).any()) for t in floating)
    return over or (bool(floating) and not any(bool(t.isfinite().any()) for t in floating))


def outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    """Flat outputs of a model in eval mode."""
    with torch.no_grad(), evaluating(model), same_draws():
        return pytree.tree_leaves(model(*_cloned(inputs[0]), **_cloned(inputs[1])))


def _cloned(tree: Any) -> Any:
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, tree)
