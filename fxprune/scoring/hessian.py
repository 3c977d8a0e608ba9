"""H g, the Hessian of the mean loss times its gradient: by a second backward pass, or by a finite difference."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune.errors import CriterionError
from fxprune.scoring import distributed as ranks
from fxprune.scoring.autograd import once_differentiable
from fxprune.scoring.identity import length

Tensors: TypeAlias = dict[str, Tensor]
Method: TypeAlias = Literal["auto", "exact", "finite_difference"]
METHODS: tuple[Method, ...] = ("auto", "exact", "finite_difference")


class Differentiable(Protocol):
    """What H g asks of a context: a loss over batches, and its gradients."""

    @property
    def who(self) -> str: ...
    @property
    def parameters(self) -> dict[str, nn.Parameter]: ...
    @property
    def batches(self) -> Iterable[Any]: ...
    def loss(self, batch: Any) -> Tensor: ...
    def differentiate(self, loss: Tensor, create_graph: bool = False) -> Tensors: ...
    def gradients(self, anew: bool = False) -> Tensors: ...
    def mean_over_batches(self, of: Callable[[Any], Tensors], title: str) -> Tensors: ...


def hessian_gradient(ctx: Differentiable, method: Method, eps: float) -> Tensors:
    """H g by a method of METHODS; "auto" is exact where the loss's ops and the memory allow it."""
    if method == "finite_difference":
        return finite_difference(ctx, eps)
    try:
        return exact(ctx)
    except RuntimeError as e:
        if not _forbids_second_pass(e):
            raise
        if method == "exact":
            raise CriterionError(
                f"{ctx.who}: the second backward pass failed: {e}; use method='finite_difference'"
            ) from e
    return finite_difference(ctx, eps)


def exact(ctx: Differentiable) -> Tensors:
    """H g by a second backward pass: mean over batches of ∂(g_bᵀ g)/∂θ, with g held fixed.

    Where there is but one batch, its g_b is g: one pass less.
    """
    one = length(ctx.batches) == 1 and not ranks.several()
    g = {} if one else ctx.gradients()

    def of(batch: object) -> Tensors:
        with sdpa_kernel(SDPBackend.MATH):
            loss = ctx.loss(batch)
            if why := once_differentiable(loss):
                raise _NoSecondPassError(why)
            first = ctx.differentiate(loss, create_graph=True)
            live = [n for n, x in first.items() if x.requires_grad]  # none, where the loss is linear
            if not live:
                return {}
            held = [(first if one else g)[n].detach().to(ctx.parameters[n].dtype) for n in live]
            # Edges stand for the gradients, whose values are no longer needed: one set of tensors less in memory.
            edges = [get_gradient_edge(first.pop(n)) for n in live]
            first.clear()
            tensors = tuple(ctx.parameters.values())
            second: tuple[Tensor | None, ...] = torch.autograd.grad(edges, tensors, held, allow_unused=True)
        return {n: h for n, h in zip(ctx.parameters, second, strict=True) if h is not None}

    return ctx.mean_over_batches(of, "H g")


def finite_difference(ctx: Differentiable, eps: float) -> Tensors:
    """H g from the gradients at two points on either side of the weights, along g."""
    g = ctx.gradients()
    half = next((n for n, p in ctx.parameters.items() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise CriterionError(
            f"{ctx.who}: {half} is half precision, too coarse for a finite difference; use model.float(), or "
            "method='exact'"
        )
    length = _norm(g)
    if length == 0:
        return {n: torch.zeros_like(x) for n, x in g.items()}
    step = eps * max(_norm(ctx.parameters), 1.0) / length
    with _moved(ctx.parameters, g, step):
        ahead = ctx.gradients(anew=True)
    with _moved(ctx.parameters, g, -step):
        behind = ctx.gradients(anew=True)
    for n, x in ahead.items():
        x.sub_(behind.pop(n)).div_(2 * step)
    return ahead


@contextlib.contextmanager
def _moved(parameters: Mapping[str, nn.Parameter], direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """Within, θ + step · direction; afterwards the very bits from before, from copies."""
    saved = {n: p.detach().clone() for n, p in parameters.items()}
    try:
        for n, p in parameters.items():
            p.data.add_(direction[n], alpha=step)
        yield
    finally:
        for n, p in parameters.items():
            p.data.copy_(saved[n])


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors.values()))


class _NoSecondPassError(RuntimeError):
    """An op of the loss has no second derivative."""


def _forbids_second_pass(error: RuntimeError) -> bool:
    """Whether an op cannot be differentiated twice, or memory ran out."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, _NoSecondPassError)) or any(
        sign in text for sign in ("is not implemented", "double backward", "differentiate twice")
    )
