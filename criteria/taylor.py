"""First-order Taylor: how much the loss changes when a weight goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.arguments import require_options
from fxprune.errors import CriterionError
from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise


@dataclass(frozen=True)
class Taylor:
    """|θ ∂L/∂θ|, summed over a channel's elements.

        L(θ with θ_e = 0) − L(θ) = −θ_e g_e + O(θ_e²),   g = ∇L of the mean loss over all batches
        default            score(c) =  Σ_{e ∈ E(c)} |θ_e g_e|         each weight's effect, whichever its direction
        signed=True        score(c) = −Σ_{e ∈ E(c)}  θ_e g_e          the predicted rise of the loss if the channel goes
        per_sample=True    score(c) =  Σ_{e ∈ E(c)}  E_i[(θ_e g_ie)²] with the gradient g_i of each sample's own loss

    All are pruned from the lowest: those whose weights matter least, signed the channel whose removal is predicted to
    lower the loss most.  Effects of opposite sign cancel in the signed form, and over samples in the first two: near a
    minimum g is small where the g_i are not.  Molchanov et al. square the sum over a filter, (Σ θ g)²; the absolute
    value inside the sum is what the structural pruners after them use.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape; buffers have no gradient and do not count.
    Unit: that of the loss, squared where per sample.  One backward pass a batch, or a sample.
    Errors: InputsError without data or loss, where batches cannot be taken apart, or where the gradient is zero;
    CriterionError where the loss or a gradient is NaN or infinite, or for signed together with per_sample.
    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, equation 8.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [-1.0]]), "1.weight": torch.tensor([[1.0, 2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> given = {"data": [torch.ones(1, 1)], "loss": lambda model, batch: model(batch).sum()}  # L = Σ a b
    >>> score(graph, net, Taylor(), **given).values["0.weight:0"].tolist()  # |a b| from either side
    [6.0, 4.0]
    """

    signed: bool = False
    per_sample: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    reduction: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        require_options(self, CriterionError)
        if self.signed and self.per_sample:
            raise CriterionError("Taylor(signed=True, per_sample=True): a square has no sign; choose one of them")

    @property
    def sharded(self) -> bool:
        """Of all samples' gradients FSDP gives the mean alone."""
        return not self.per_sample

    def __call__(self, ctx: Context) -> dict[str, Elementwise]:
        """Saliency of every parameter."""
        if self.per_sample:
            return ctx.beside(ctx.squared_gradients(), lambda p, square: p.square() * square)
        if self.signed:
            return ctx.beside(ctx.gradients(), lambda p, g: -p * g)
        return ctx.beside(ctx.gradients(), lambda p, g: (p * g).abs_())
