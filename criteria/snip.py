"""SNIP: how sensitive the loss is to a connection, as a share of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise


@dataclass(frozen=True)
class Snip:
    """|g θ| over its sum over the whole network, summed over a channel's elements.

        s_e = |θ_e g_e| / Σ_k |θ_k g_k|,   score(c) = Σ_{e ∈ E(c)} s_e,   g = ∇L of the mean loss over all batches

    θ_e g_e is the derivative of the loss by a gate on weight e, at gate = 1.  The channels come in `taylor`'s order;
    the two differ by the scale, which here does not depend on the loss.

    Needs data and a loss.  Shape: a saliency of each parameter's own shape, ≥ 0, without unit; buffers have no gradient
    and do not count.  One backward pass a batch.
    Errors: InputsError without data or loss; CriterionError where the loss or a gradient is NaN or infinite.
    Source: Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, ICLR 2019.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [-1.0]]), "1.weight": torch.tensor([[1.0, 1.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> given = {"data": [torch.ones(1, 1)], "loss": lambda model, batch: model(batch).sum()}
    >>> score(graph, net, Snip(), **given).values["0.weight:0"].tolist()  # |a b| is 3 and 1
    [0.75, 0.25]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})
    reduction: ClassVar[str] = "sum"
    sharded: ClassVar[bool] = True

    def __call__(self, ctx: Context) -> dict[str, Elementwise]:
        """Saliency of every parameter."""
        gates = ctx.beside(ctx.gradients(), lambda p, g: (p * g).abs_())
        total = sum(float(x.fold(list(range(len(x.shape))))) for x in gates.values())
        return {name: x.then(lambda gate: gate / total) if total > 0 else x for name, x in gates.items()}
