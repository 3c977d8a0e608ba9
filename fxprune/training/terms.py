"""How far a student's outputs are from a teacher's; with weights, one a sample, the mean over samples is weighted."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError
from fxprune.scoring.autograd import softmax_axes

How: TypeAlias = "list[int | None] | None"


def distance(student: Any, teacher: Any, how: How, t: float, weights: Tensor | None = None) -> Tensor:
    """The squared error or the divergence of all floating-point outputs, shape ().

    Args:
        student: what the student gave.
        teacher: what the dense model gave.
        how: from `compared`.
        t: the temperature.
        weights: (n,), of samples.

    Raises:
        InputsError: the outputs are of other shapes than the dense model's, or none is of a floating-point type.
    """
    if how is None:
        return divergence(student.logits, teacher.logits, t, weights=weights)
    ours, theirs = pytree.tree_leaves(student), pytree.tree_leaves(teacher)
    if list(map(_shape, ours)) != list(map(_shape, theirs)):
        raise InputsError(
            "the model's outputs in training are not of the structure and shapes of the dense model's in eval mode"
        )
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if is_float(a)]
    if not pairs:
        raise InputsError("the model gives no floating-point tensor, so there is no output to learn from")
    terms = [
        error(*p, weights) if axis is None else divergence(*p, t, axis, weights)
        for p, axis in zip(pairs, how, strict=True)
    ]
    return torch.stack(terms).sum()


def compared(outputs: Any, value: Tensor, kind: str) -> How:
    """Along which axis each floating-point output is a distribution (None: it is none); or None: the `logits` are one.

    Args:
        outputs: what the student gave.
        value: the loss, whose autograd graph tells which outputs are logits.
        kind: of `Distillation`.
    """
    if kind != "mse" and isinstance(getattr(outputs, "logits", None), Tensor):
        return None
    floats = [x for x in pytree.tree_leaves(outputs) if is_float(x)]
    return softmax_axes(value, floats) if kind == "auto" else [-1 if kind == "kl" else None] * len(floats)


def error(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean squared error."""
    if weights is None:
        return F.mse_loss(student.float(), teacher.float())
    squares = (student.float() - teacher.float()).square().reshape(len(student), -1).mean(1)
    return (weights * squares).mean()


def divergence(student: Tensor, teacher: Tensor, t: float, axis: int = -1, weights: Tensor | None = None) -> Tensor:
    """t² KL(softmax(teacher / t) ‖ softmax(student / t)) along an axis, its mean over all others."""
    a, b = (F.log_softmax(z.float().movedim(axis, -1) / t, -1).flatten(0, -2) for z in (student, teacher))
    if weights is None:
        return F.kl_div(a, b, reduction="batchmean", log_target=True) * t * t
    rows = F.kl_div(a, b, reduction="none", log_target=True).sum(1)
    return (weights.repeat_interleave(len(rows) // len(weights)) * rows).mean() * t * t


def sensitivity(moved: Any, still: Any, step: float) -> Tensor:
    """‖J v‖ of every sample, (n,), from the outputs a step along v away and in place."""
    pairs = zip(pytree.tree_leaves(moved), pytree.tree_leaves(still), strict=True)
    differences = [(a.float() - b.float()).flatten(1) / step for a, b in pairs if is_float(a) and a.dim() > 1]
    if not differences:
        raise InputsError("jacobian= needs a model whose outputs are floating-point tensors of two axes or more")
    lengths: Tensor = torch.linalg.vector_norm(torch.cat(differences, 1), dim=1)
    return lengths


def mismatch(ours: Tensor, theirs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ w (‖J v‖ − ‖J_T v‖)² / Σ ‖J_T v‖² over samples."""
    squares = (ours - theirs).square()
    least = torch.finfo(torch.float32).tiny
    return (squares if weights is None else weights * squares).sum() / theirs.square().sum().clamp_min(least)


def is_float(value: Any) -> bool:
    """Whether a value is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None
