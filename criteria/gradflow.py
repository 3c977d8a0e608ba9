"""Gradient flow: prune what costs little and leaves the flow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor

from fxprune.arguments import TEXT, require_options
from fxprune.errors import CriterionError
from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise
from fxprune.scoring.hessian import METHODS, Method
from fxprune.scoring.storage import norm

Form: TypeAlias = Literal["weighed", "literal"]
FORMS: tuple[Form, ...] = ("weighed", "literal")
HORIZON = 0.4  # in units of T*
POWER = 1.25


@dataclass(frozen=True)
class GradFlow:
    """(|θ g| + T |θ (H g)|)^1.25, summed over a channel's elements: what a removal costs and takes from the flow.

    g = ∇L and H = ∇²L are those of the mean loss over all batches.  Removing weight q is the step Δθ = −θ_q e_q:

        ΔL     = −θ_q g_q         to first order: the loss at once
        Δ‖g‖²  = −2 θ_q (H g)_q   to first order: a gradient step of length T lowers the loss by
                                  T ‖g‖² − ½ T² gᵀHg, so this is how fast what is left trains

        a_q = |θ_q g_q| + T |θ_q (H g)_q|,    T = horizon · T*,    T* = ‖g‖² / |gᵀ H g|
        score(c) = U Σ_{q ∈ E(c)} (a_q / U)^power,    U = ‖θ‖ ‖g‖

    Both terms are in units of the loss: T* is the step that a line search along the flow takes.  It is taken in part,
    since g is an estimate, and of the ‖g‖² of a trained network over few samples most is the noise between them.  Where
    gᵀHg < 0 the loss curves down along the flow (a saddle) and there is no such step; T* is then where its slope has
    doubled, which is as far as the quadratic model may be trusted on that side.  Either way it is the step after which
    the slope has changed by its own size, and the order of channels has no jump where gᵀHg changes sign: T* is at most
    10 ‖g‖ / ‖H g‖, ten times the step in which the gradient changes by its own length.  Where H g = 0 the first term
    decides alone; where g = 0 nothing can be told, and that is an error.

    Effects of opposite sign do not cancel: over one channel and a few batches the sign is mostly noise.  What they add
    up to lies between their sum, if all have one sign (power = 1), and the root of the sum of their squares, if signs
    are chance, of which the squares are what adds up (power = 2).  U, a bound of Σ |θ g|, keeps the unit and changes no
    order.

    Args:
        method: how H g is computed; the report says which it was.
            "exact": a second backward pass, H_b g = ∂(g_bᵀ v)/∂θ at v = g held fixed.  Attention runs in PyTorch's
                math kernel, the only one with a second derivative.
            "finite_difference": H g ≈ ‖g‖ (∇L(θ + ε ĝ) − ∇L(θ − ε ĝ)) / 2ε, ĝ = g/‖g‖, ε = eps · ‖θ‖, error O(ε²).
                Two ordinary backward passes; the weights move and are put back bit for bit.
            "auto": exact; finite differences where a function in the loss's graph has no second derivative, or a
                backward pass that was written by hand (PyTorch takes what that computes from detached copies for
                constant, without a word), or where the memory that is free does not hold a second pass.
        eps: step of the finite difference, as a fraction of the parameters' norm.
        horizon: T in units of T*.  With 0, H g is not computed; infinity keeps the second term alone.  This default and
            the power's are what did best on the networks of this project's benchmarks.
        power: how much the largest effects of a channel count before many small ones.  With 1, the horizon of 0 is
            `taylor`, and that of infinity `gradflow_preserving`.
        form: "weighed" is the score above.  "literal" is the published one, Σ θ_q (H g)_q with its sign: the lowest,
            pruned first, raise the gradient norm.  It does what it says and is no choice for trained networks: what
            raises the gradient norm most is what the loss can least do without.  On the digits model that ships, 40 %
            of the parameters, no training: held-out loss 0.86, where random has 0.33, taylor 0.150 and the dense model
            0.134; on another DDPM at 50 %, 0.73, and 0.21 after 120 steps of training, where taylor has 0.156 and
            0.080.

    L is the mean loss over all batches.  g is accumulated over all of them first, then H g batch by batch, as the mean
    of H_b g: memory for one batch, and four to six tensors as large as the parameters.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape; buffers are not trained and do not count.
    Unit: that of the loss; for an infinite horizon, where U is ‖θ‖ ‖H g‖, and the literal form that of ‖g‖², loss² per
    weight².
    Errors: InputsError without data or loss, or where the gradient is zero; CriterionError where the loss or a
    derivative is NaN or infinite, for an unknown method or form, for "exact" where an op has no second derivative or a
    wrong one, for finite differences of half-precision weights, and for "auto" where neither way fits into the memory
    that is free.
    Source: Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow (GraSP), ICLR 2020;
    structured and iterated for diffusion models by Wan et al., arXiv 2501.09464 (the literal form); preserving: Lubana
    and Dick, A Gradient Flow Framework for Analyzing Network Pruning, ICLR 2021.  Their sum is this project's.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [-1.0]]), "1.weight": torch.tensor([[1.0, 2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> def loss(model, batch):  # L = (a₁² + 2 a₂²) / 2: g = (a₁, 2 a₂), H g = (a₁, 4 a₂), T* = (9 + 4) / (9 + 8)
    ...     return (model[0].weight.square() * torch.tensor([[1.0], [2.0]])).sum() / 2
    >>> scores = score(graph, net, GradFlow(horizon=1, power=1), data=[None], loss=loss)
    >>> [round(float(v) * 17) for v in scores.values["0.weight:0"]]  # 17 (9 + 13/17 · 9), 17 (2 + 13/17 · 4)
    [270, 86]
    """

    method: Method = "auto"
    eps: float = 1e-4
    horizon: float = HORIZON
    form: Form = "weighed"
    power: float = POWER
    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    derivatives: ClassVar[int] = 2
    reduction: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        require_options(self, CriterionError, method=TEXT, form=TEXT)
        if self.method not in METHODS:
            raise CriterionError(f"GradFlow(method={self.method!r}): use one of {', '.join(map(repr, METHODS))}")
        if not self.eps > 0:
            raise CriterionError(f"GradFlow(eps={self.eps}): the step must be positive, such as 1e-4")
        if not self.horizon >= 0:
            raise CriterionError(f"GradFlow(horizon={self.horizon}): pass a number of steps T*, such as {HORIZON}")
        if not 1 <= self.power < math.inf:
            raise CriterionError(f"GradFlow(power={self.power}): pass a number of 1 or more, such as {POWER}")
        if self.form not in FORMS:
            raise CriterionError(f"GradFlow(form={self.form!r}): use one of {', '.join(map(repr, FORMS))}")
        if self.form == "literal" and self.horizon != HORIZON:
            raise CriterionError(f"GradFlow(form='literal', horizon={self.horizon}): that form has no horizon; drop it")
        if self.form == "literal" and self.power != POWER:
            raise CriterionError(f"GradFlow(form='literal', power={self.power}): that form has no power; drop it")

    def __call__(self, ctx: Context) -> dict[str, Elementwise]:
        """Saliency of every parameter."""
        if self.form == "weighed" and self.horizon == 0:
            return self._saliency(ctx, ctx.gradients())
        found = ctx.curvature(self.method, self.eps)
        ctx.telling(found.gradient)
        ctx.note(str(found))
        if self.form == "literal":
            return ctx.beside(found.product, lambda p, h: p * h)
        if math.isinf(self.horizon):
            return self._saliency(ctx, found.product)
        if found.along < 0:
            ctx.note("the loss curves down along its gradient: T* is where its slope has doubled, not a minimum")
        return self._saliency(ctx, found.gradient, found.product, self.horizon * found.step)

    def _saliency(
        self, ctx: Context, first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None = None, length: float = 0.0
    ) -> dict[str, Elementwise]:
        """U ((|θ first| + length |θ second|) / U)^power."""
        if second is None:
            effects = ctx.beside(first, _absolute)
        else:
            effects = ctx.beside(first, lambda p, g, h: _absolute(p, g).add_(_absolute(p, h), alpha=length), second)
        if self.power == 1:
            return effects
        unit = norm(ctx.parameters) * norm(first) or 1.0
        return {n: e.then(lambda a: a.div_(unit).pow_(self.power).mul_(unit)) for n, e in effects.items()}


def _absolute(p: Tensor, direction: Tensor) -> Tensor:
    """|θ d|."""
    return (p * direction).abs_()
