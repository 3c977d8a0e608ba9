"""Outputs of models side by side: how far two correct computations may differ, and how far these do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.graph.modules import Inputs, evaluating, same_draws, training, unfused
from fxprune.graph.packing import called, copied
from fxprune.graph.regions import autocast_of
from fxprune.graph.trace import Traced
from fxprune.graph.untouched import same_buffers, same_parameters, untouched
from fxprune.masking.settled import Settled

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def tolerance(model: nn.Module, traced: Traced | None = None) -> float:
    """How far two correct computations may differ, for the coarsest floating type of a model or its autocast."""
    types = {p.dtype for p in model.parameters()}
    types |= {cast[1] for n in traced.graph.nodes if (cast := autocast_of(n)) and cast[2]} if traced else set()
    return max((TOLERANCE[t] for t in types & set(TOLERANCE)), default=1e-4)


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


def silent(values: Sequence[Any]) -> tuple[int, int]:
    """How many floating tensors there are, and how many of them are zero everywhere: these compare nothing."""
    floats = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.numel()]
    return len(floats), sum(not bool(v.any()) for v in floats)


def as_float64(inputs: Inputs) -> Inputs:
    """The same inputs, floating tensors in float64."""
    args, kwargs = pytree.tree_map(
        lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs
    )
    return args, kwargs


def outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    """Flat outputs of a model in eval mode."""
    with torch.no_grad(), unfused(), evaluating(model), same_draws():
        return pytree.tree_leaves(called(model, copied(inputs)))


def counted(model: nn.Module, traced: Traced, inputs: Inputs | None = None) -> list[Any]:
    """Flat outputs of a model, those that count, in the mode of its trace; the model stays as it was.

    Args:
        inputs: None: the example inputs.
    """
    given = copied(traced.example if inputs is None else inputs)
    with mode_scope(model, traced), torch.no_grad(), unfused(), same_draws():
        return pytree.tree_leaves(traced.returned(called(model, given)))


@contextlib.contextmanager
def mode_scope(model: nn.Module, traced: Traced) -> Iterator[None]:
    """Within, a model is in the mode of a trace; in train mode its draws are settled, and it is put back afterwards."""
    if not traced.in_training:
        with evaluating(model), same_buffers(model):
            yield
        return
    with training(model), untouched(model), same_buffers(model), same_parameters(model), Settled():
        yield
