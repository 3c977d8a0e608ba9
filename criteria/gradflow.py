"""Gradient flow: prune what keeps the network from training fast."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.autograd.function as once
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune.context import Context
from fxprune.errors import CriterionError

Tensors: TypeAlias = dict[str, Tensor]
Method: TypeAlias = Literal["auto", "exact", "finite_difference"]
METHODS: tuple[Method, ...] = ("auto", "exact", "finite_difference")


@dataclass(frozen=True)
class GradFlow:
    """θ · (H g), signed, summed over a channel's elements; the lowest are pruned first.

    A gradient step of size η lowers the loss by η ‖g‖² to first order, so ‖g‖² is how fast a network trains.  With
    g = ∇L and H = ∇²L, the gradient of ‖g‖² = gᵀg is 2 H g.  Removing weight q is the step Δθ = −θ_q e_q, hence

        Δ‖g‖² = (2 H g)ᵀ Δθ = −2 θ_q (H g)_q        to first order
        score(c) = Σ_{q ∈ E(c)} θ_q (H g)_q         so that removing channel c changes ‖g‖² by −2 score(c)

    A low (most negative) score means that the removal *raises* the gradient norm: such channels go first, and what is
    left trains fastest.  A high one means that gradient flow would be lost with the channel.  The sign matters, so
    nothing is made absolute; scores of a channel may cancel.  (GraSP writes −θ·Hg and removes the highest: the same
    channels.)

    L is the mean loss over all batches.  g is accumulated over all of them first, then H g batch by batch, as the mean
    of H_b g: memory for one batch, and four to six tensors as large as the parameters.

    method:
        "exact": a second backward pass, H_b g = ∂(g_bᵀ v)/∂θ at v = g held fixed.  Attention runs in PyTorch's math
            kernel, the only one with a second derivative.
        "finite_difference": H g ≈ ‖g‖ (∇L(θ + ε ĝ) − ∇L(θ − ε ĝ)) / 2ε, ĝ = g/‖g‖, ε = eps · ‖θ‖, error O(ε²).  Two
            ordinary backward passes; the weights move and are put back bit for bit.
        "auto": exact, and where PyTorch says that an op has no second derivative or that memory ran out, finite
            differences.
    eps: step of the finite difference, as a fraction of the parameters' norm.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape; buffers are not trained and do not count.
    Unit: loss² per (weight unit)², i.e. that of ‖g‖².
    Errors: InputsError without data or loss; CriterionError where the loss or a derivative is NaN or infinite, for an
    unknown method, for "exact" where an op has no second derivative, and for finite differences of half-precision
    weights.
    Source: Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow (GraSP), ICLR 2020;
    structured and iterated for diffusion models by Wan et al., arXiv 2501.09464.
    """

    method: Method = "auto"
    eps: float = 1e-4
    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    reduction: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise CriterionError(f"GradFlow(method={self.method!r}): use one of {', '.join(map(repr, METHODS))}")
        if not self.eps > 0:
            raise CriterionError(f"GradFlow(eps={self.eps}): the step must be positive, such as 1e-4")

    def __call__(self, ctx: Context) -> Tensors:
        """Saliency θ (H g) of every parameter."""
        g = ctx.gradients()
        product = self._hessian_times(ctx, g)
        with torch.no_grad():
            return {name: p * product[name] for name, p in ctx.parameters.items()}

    def _hessian_times(self, ctx: Context, g: Tensors) -> Tensors:
        if self.method == "finite_difference":
            return finite_difference(ctx, g, self.eps)
        try:
            return exact(ctx, g)
        except RuntimeError as e:
            if not _forbids_second_pass(e):
                raise
            if self.method == "exact":
                raise CriterionError(
                    f"criterion {ctx.criterion!r}: the second backward pass failed: {e}; use "
                    "GradFlow(method='finite_difference')"
                ) from e
        return finite_difference(ctx, g, self.eps)


def exact(ctx: Context, g: Mapping[str, Tensor]) -> Tensors:
    """H g by a second backward pass: mean over batches of ∂(g_bᵀ g)/∂θ, with g held fixed."""

    def of(batch: object) -> Tensors:
        with sdpa_kernel(SDPBackend.MATH):
            loss = ctx.loss(batch)
            if name := _once_differentiable(loss):
                raise _NoSecondPassError(f"{name} is marked @once_differentiable")
            first = ctx.differentiate(loss, create_graph=True)
            live = [n for n, x in first.items() if x.requires_grad]  # none, where the loss is linear
            if not live:
                return {}
            # Edges stand for the gradients, whose values are no longer needed: one set of tensors less in memory.
            edges = [get_gradient_edge(first.pop(n)) for n in live]
            first.clear()
            tensors = tuple(ctx.parameters.values())
            held = [g[n].to(ctx.parameters[n].dtype) for n in live]
            second: tuple[Tensor | None, ...] = torch.autograd.grad(edges, tensors, held, allow_unused=True)
        return {n: h for n, h in zip(ctx.parameters, second, strict=True) if h is not None}

    return ctx.mean_over_batches(of, "H g")


def finite_difference(ctx: Context, g: Mapping[str, Tensor], eps: float) -> Tensors:
    """H g from the gradients at two points on either side of the weights, along g."""
    half = next((n for n, p in ctx.parameters.items() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise CriterionError(
            f"criterion {ctx.criterion!r}: {half} is half precision, too coarse for a finite difference; use "
            "model.float(), or GradFlow(method='exact')"
        )
    length = _norm(g)
    if length == 0:
        return {n: torch.zeros_like(x) for n, x in g.items()}
    step = eps * max(_norm(ctx.parameters), 1.0) / length
    with _moved(ctx.parameters, g, step):
        ahead = ctx.gradients()
    with _moved(ctx.parameters, g, -step):
        behind = ctx.gradients()
    return {n: (ahead[n] - behind[n]) / (2 * step) for n in ahead}


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


def _once_differentiable(loss: Tensor) -> str:
    """Name of an autograd function in the loss's graph that is marked @once_differentiable ("" if there is none).

    PyTorch means to raise in the second backward pass of such a function, but does not where the pass is asked for
    certain inputs (`torch.autograd.grad`): it then leaves the function's part out of H g without a word.
    """
    todo = [loss.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        function = getattr(node, "_forward_cls", None)
        # The decorator returns a wrapper that lives in torch.autograd.function, whatever its name pretends.
        if getattr(getattr(function, "backward", None), "__globals__", {}).get("__name__") == once.__name__:
            return str(getattr(function, "__name__", function))
        for following, _ in node.next_functions if node is not None else ():
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return ""
