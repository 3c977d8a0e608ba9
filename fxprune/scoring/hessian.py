"""H g, the Hessian of the mean loss times its gradient: by a second backward pass, or by a finite difference."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune.errors import CriterionError
from fxprune.scoring import distributed as ranks
from fxprune.scoring.autograd import handwritten, once_differentiable
from fxprune.scoring.foresight import Rehearsable, halves, way_that_fits
from fxprune.scoring.identity import length
from fxprune.scoring.parts import out_of_memory
from fxprune.scoring.storage import Sums, forms_of, norm, store

Tensors: TypeAlias = dict[str, Tensor]
Method: TypeAlias = Literal["auto", "exact", "finite_difference"]
METHODS: tuple[Method, ...] = ("auto", "exact", "finite_difference")
AGREE = 0.02  # of a parameter's part of ‖H g‖: a finite difference is off by far less, a missing part usually by more
SLIGHT = 1e-3  # of ‖H g‖: what is less than that in a parameter is not held against its own size
FARTHEST = 10.0  # where a gradient step may end, in lengths in which the gradient changes by its own size
LOST = 32  # roundings of the gradient: a difference no larger than that is noise


class Differentiable(Rehearsable, Protocol):
    """What H g asks of a context: a loss over batches, and its gradients."""

    def loss(self, batch: Any) -> Tensor: ...
    def differentiate(self, loss: Tensor, create_graph: bool = False) -> Tensors: ...
    def gradients(self) -> Mapping[str, Tensor]: ...
    def add_batches(self, onto: Sums, factor: float = 1.0) -> int: ...
    def mean_over_batches(self, of: Callable[[Any], Tensors], title: str) -> Sums: ...


@dataclass(frozen=True, eq=False)
class Curvature:
    """The gradient g, H g, and how the latter was computed.

    Attributes:
        gradient: g by parameter name, of the parameters' shapes, in float32 at least.
        product: H g, alike.
        exact: by a second backward pass; otherwise by a finite difference of gradients.
        why: why it was not the second backward pass ("" if it was, or if the finite difference was asked for).
    """

    gradient: Mapping[str, Tensor]
    product: Mapping[str, Tensor]
    exact: bool
    why: str = ""

    @functools.cached_property
    def along(self) -> float:
        """gᵀ H g: how the loss curves along its gradient."""
        pairs = ((g, self.product[n]) for n, g in self.gradient.items())
        return sum(float((g.double() * h.double()).sum()) for g, h in pairs)

    @functools.cached_property
    def step(self) -> float:
        """T* = ‖g‖² / |gᵀ H g|: the step after which the loss's slope along the flow has changed by its own size.

        The slope after a step T is ‖g‖² − T gᵀHg.  Where the loss curves up it is zero at T*, the step of a line
        search.  Where it curves down (a saddle) there is no such step, and at T* the slope has doubled: as far as the
        quadratic model may be trusted on that side.  At most FARTHEST · ‖g‖ / ‖H g‖, where the gradient itself has
        changed by as many times its length; zero where g or H g is.
        """
        g, h = norm(self.gradient), norm(self.product)
        return g / max(abs(self.along) / g, h / FARTHEST) if g and h else 0.0

    def __str__(self) -> str:
        how = "by a second backward pass" if self.exact else "by a finite difference of gradients"
        return f"H g {how}{f': {self.why}' if self.why else ''}"


def curvature(ctx: Differentiable, method: Method, eps: float) -> Curvature:
    """g and H g by a method of METHODS; "auto" is exact where the loss's functions and the memory allow it.

    Raises:
        CriterionError: "exact" where a function of the loss has no second derivative, or where one that was written by
            hand gives a wrong one; "auto" where neither way fits into the memory that is free.
    """
    if method == "finite_difference":
        return finite_difference(ctx, eps)
    if method == "auto" and (tight := way_that_fits(ctx)):
        return replace(finite_difference(ctx, eps), why=tight)
    try:
        made, suspect = exact(ctx, careful=method == "auto")
    except Exception as e:
        if method == "exact" and _is_of_the_second_pass(e):
            told = e if isinstance(e, _NoSecondPassError) else f"{type(e).__name__}: {e}"
            raise CriterionError(
                f"{ctx.who}: the second backward pass failed: {told}; use method='finite_difference'"
            ) from e
        if method == "exact" or not _forbids_second_pass(e):
            raise
        why = str(e).splitlines()[0]
    else:
        if suspect:
            _confirm(ctx, made, suspect, eps)
        return made
    return replace(finite_difference(ctx, eps), why=why)  # out of the handler, whose traceback holds the graph


def exact(ctx: Differentiable, careful: bool = True) -> tuple[Curvature, str]:
    """g and H g by a second backward pass: mean over batches of ∂(g_bᵀ g)/∂θ, with g held fixed.

    Where there is but one batch, its g_b is g: one pass less.

    Args:
        ctx: the loss, its batches and parameters.
        careful: raise where a function of the loss has a backward pass that was written by hand.

    Returns:
        Both, and which function's second derivative is yet to be confirmed ("" for none).
    """
    one = length(ctx.batches) == 1 and not ranks.several()
    firsts: Tensors = {}
    g = firsts if one else ctx.gradients()
    suspects: list[str] = []

    def of(batch: object) -> Tensors:
        with sdpa_kernel(SDPBackend.MATH):
            loss = ctx.loss(batch)
            suspects.extend(filter(None, [_examined(loss, careful)]))
            first = ctx.differentiate(loss, create_graph=True)
            if one:
                firsts.update({n: _at_least_float32(x.detach()) for n, x in first.items()})
            live = [n for n, x in first.items() if x.requires_grad]  # none, where the loss is linear
            if not live:
                return {}
            held = [g[n].to(ctx.parameters[n].dtype) for n in live]
            # Edges stand for the gradients, whose values are no longer needed: one set of tensors less in memory.
            edges = [get_gradient_edge(first.pop(n)) for n in live]
            first.clear()
            tensors = tuple(ctx.parameters.values())
            second: tuple[Tensor | None, ...] = torch.autograd.grad(edges, tensors, held, allow_unused=True)
        return {n: h for n, h in zip(ctx.parameters, second, strict=True) if h is not None}

    product = ctx.mean_over_batches(of, "H g")
    return Curvature(g, product, True), suspects[0] if suspects else ""


def finite_difference(ctx: Differentiable, eps: float) -> Curvature:
    """g, and H g from the gradients at two points on either side of the weights, along g.

    A difference that is lost in the rounding of the gradients is taken for what it is, zero.
    """
    if half := halves(ctx.parameters):
        raise CriterionError(
            f"{ctx.who}: {half} is half precision, too coarse for a finite difference; use model.float(), or "
            "method='exact'"
        )
    g = ctx.gradients()
    length = norm(g)
    if length == 0:
        return Curvature(g, Sums(ctx.parameters), False)
    step = eps * max(norm(ctx.parameters), 1.0) / length
    difference, number = Sums(ctx.parameters), 0
    for sign in (1, -1):
        with _moved(ctx.parameters, g, sign * step):
            number = ctx.add_batches(difference, sign)
    difference.settle(number)
    rounding = max(torch.finfo(p.dtype).eps for p in ctx.parameters.values())
    difference.scale(0.0 if norm(difference) <= LOST * rounding * length else 1 / (2 * step))
    return Curvature(g, difference, False)


@contextlib.contextmanager
def _moved(parameters: Mapping[str, nn.Parameter], direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """Within, θ + step · direction; afterwards the very bits from before, from copies."""
    saved = store(forms_of(parameters))
    moved: list[str] = []
    try:
        for n, p in parameters.items():
            saved.put(n, p.detach().clone())
            moved.append(n)
            p.data.add_(direction[n], alpha=step)
        yield
    finally:
        for n in moved:
            parameters[n].data.copy_(saved.get(n))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _NoSecondPassError(RuntimeError):
    """A function of the loss has no second derivative."""


def _examined(loss: Tensor, careful: bool) -> str:
    """The function whose second derivative must be confirmed; raises where there is none, or `careful` forbids it."""
    if why := once_differentiable(loss):
        raise _NoSecondPassError(why)
    why = handwritten(loss)
    if why and careful:
        raise _NoSecondPassError(why)
    return why


def _confirm(ctx: Differentiable, made: Curvature, suspect: str, eps: float) -> None:
    """Hold H g against a finite difference, because nothing else tells whether a backward pass has a derivative."""
    if half := halves(ctx.parameters):
        raise CriterionError(
            f"{ctx.who}: {suspect}, and whether that has a derivative cannot be checked because {half} is half "
            "precision; use model.float()"
        )
    near = finite_difference(ctx, eps).product
    floor = SLIGHT * norm(near)
    off = max(norm({n: h - near[n]}) / max(norm({n: near[n]}), floor, 1e-300) for n, h in made.product.items())
    if off > AGREE:
        raise CriterionError(
            f"{ctx.who}: {suspect} that PyTorch cannot differentiate: the second backward pass is off by {off:.0%}; "
            "use method='finite_difference'"
        )


def _is_of_the_second_pass(error: Exception) -> bool:
    """Whether autograd raised, or a backward pass that it called; what the loss raises is restated before."""
    return isinstance(error, (AttributeError, RuntimeError)) and not out_of_memory(error)


def _forbids_second_pass(error: Exception) -> bool:
    """Whether an op cannot be differentiated twice, or memory ran out."""
    text = str(error)
    signs = ("is not implemented", "double backward", "differentiate twice")
    return (
        isinstance(error, _NoSecondPassError)
        or out_of_memory(error)
        or (isinstance(error, RuntimeError) and any(sign in text for sign in signs))
    )
