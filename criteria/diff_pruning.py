"""Diff-Pruning: Taylor over the timesteps of a diffusion model that still teach something."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from fxprune.arguments import require_options
from fxprune.errors import CriterionError
from fxprune.scoring import distributed as ranks
from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise


@dataclass(frozen=True)
class DiffPruning:
    """|θ g|, with the gradient g of the timesteps whose loss is more than a share of the largest.

        g = mean of ∇L_t over all t with L_t / L_max > threshold
        score(c) = Σ_{e ∈ E(c)} |θ_e g_e|

    Late in the noising process the loss is small and its gradient says little about what the model draws; leaving these
    timesteps out gives a better gradient for less work.  A timestep is a sample here, since a diffusion model's batch
    holds one a sample; with per_sample=False it is a batch, for data with one timestep a batch.  The rule looks at
    losses alone, so it works for any model and data.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape, ≥ 0; buffers have no gradient and do not
    count.  Unit: that of the loss.  One forward pass a timestep, then forward and backward for those that count, each
    in the memory of one.
    Errors: InputsError without data or loss, or where batches cannot be taken apart; CriterionError for a threshold
    outside [0, 1), where the loss or a gradient is NaN or infinite, or where no loss is above zero.
    Source: Fang et al., Structural Pruning for Diffusion Models, NeurIPS 2023.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [1.0]]), "1.weight": torch.tensor([[1.0, 2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> data = [torch.tensor([[1.0], [0.01]])]  # losses 5 and 0.05: the second does not count
    >>> score(graph, net, DiffPruning(), data=data, loss=lambda m, x: m(x).mean()).values["0.weight:0"].tolist()
    [6.0, 4.0]
    """

    threshold: float = 0.05
    per_sample: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    reduction: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        require_options(self, CriterionError)
        if not 0 <= self.threshold < 1:
            raise CriterionError(f"DiffPruning(threshold={self.threshold}): a share in [0, 1), such as 0.05")

    def __call__(self, ctx: Context) -> dict[str, Elementwise]:
        """Saliency of every parameter."""
        losses = [float(ctx.loss(part, k).detach()) for k, part in enumerate(self._parts(ctx, "losses"))]
        top = ranks.largest(max(losses), ctx.device)
        if top <= 0:
            raise CriterionError(f"{ctx.who}: no timestep has a loss above zero (the largest is {top}); use 'taylor'")
        counts = [loss / top > self.threshold for loss in losses]
        parts = enumerate(self._parts(ctx, "gradients"))
        g = ctx.mean_gradients(ctx.loss(part, k) if counts[k] else None for k, part in parts)
        share = ranks.total(sum(counts), ctx.device) / ranks.total(len(counts), ctx.device)
        return ctx.beside(g, lambda p, mean: (p * mean / share).abs_())

    def _parts(self, ctx: Context, title: str) -> Iterable[Any]:
        return ctx.samples(title) if self.per_sample else ctx.track(title)
