"""Fisher: the loss's rise to second order, with the diagonal of the Fisher information for the Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.arguments import require_options
from fxprune.errors import CriterionError
from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise


@dataclass(frozen=True)
class Fisher:
    """½ θ² E[g²], summed over a channel's elements: Optimal Brain Damage with the Fisher diagonal as curvature.

        L(θ with θ_e = 0) − L(θ) ≈ ½ H_ee θ_e²         at a minimum, H taken as diagonal
        score(c) = ½ Σ_{e ∈ E(c)} θ_e² E_i[g_ie²]      H_ee ≈ E_i[g_ie²], g_i the gradient of sample i's own loss

    The expectation runs over the labels at hand (the empirical Fisher), which is near the Hessian where the model fits
    its data.  per_sample=False takes the gradients of whole batches instead: as dear as a backward pass a batch, but
    gradients that cancel within a batch are lost.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape, ≥ 0; buffers have no gradient and do not
    count.  Unit: loss², as for any Fisher information.  One backward pass a sample, in the memory of one.
    Errors: InputsError without data or loss, or where batches cannot be taken apart; CriterionError where the loss or a
    gradient is NaN or infinite.
    Source: LeCun et al., Optimal Brain Damage, NIPS 1989; Theis et al., Faster Gaze Prediction With Dense Networks and
    Fisher Pruning, 2018; per channel Liu et al., Group Fisher Pruning, ICML 2021.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [-1.0]]), "1.weight": torch.tensor([[1.0, 2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> data = [torch.tensor([[1.0], [-1.0]])]  # g of the two samples is ± b and ± a: the mean is zero, E[g²] is not
    >>> given = {"data": data, "loss": lambda model, batch: model(batch).mean()}
    >>> score(graph, net, Fisher(), **given).values["0.weight:0"].tolist()  # (a b)², half from either side
    [9.0, 4.0]
    """

    per_sample: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    reduction: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        require_options(self, CriterionError)

    def __call__(self, ctx: Context) -> dict[str, Elementwise]:
        """Saliency of every parameter."""
        return ctx.beside(ctx.squared_gradients(self.per_sample), lambda p, square: p.square() * square / 2)
