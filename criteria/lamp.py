"""LAMP: a channel's weight against that of the channels that would outlive it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise
from fxprune.scoring.folding import Floats
from fxprune.scoring.saliency import channel_scores


@dataclass(frozen=True)
class Lamp:
    """The share of a channel's squared weights in those of all channels of its group that are at least as large.

        v_c = Σ_{e ∈ E(c)} w_e²,   score(c) = v_c / Σ_{c': v_c' ≥ v_c} v_c'

    The largest channel of each group scores 1, so that a global ranking empties no group before all others are down to
    one channel.  LAMP ranks weights by the same quotient within a layer; here channels take their place.

    Needs neither data nor a loss.  Shape: one score a channel of each group, in [0, 1], without unit; parameters and
    weight-like buffers count.
    Errors: CriterionError where weights are NaN.
    Source: Lee et al., Layer-Adaptive Sparsity for the Magnitude-Based Pruning, ICLR 2021.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [1.0]]), "1.weight": torch.tensor([[0.0, 0.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> score(graph, net, Lamp()).values["0.weight:0"].tolist()  # 9 / 9 and 1 / (9 + 1)
    [1.0, 0.1]
    """

    @torch.no_grad()
    def __call__(self, ctx: Context) -> dict[str, Floats]:
        """Group name -> one score a channel."""
        squares = {name: Elementwise(w, torch.square) for name, w in ctx.tensors.items()}
        return {g: _quotients(v) for g, v in channel_scores(ctx.graph, ctx.who, squares, "sum").items()}


def _quotients(v: Floats) -> Floats:
    ascending = np.sort(v)
    at_least = np.cumsum(ascending[::-1])[::-1][np.searchsorted(ascending, v)]
    return np.divide(v, at_least, out=np.zeros_like(v), where=at_least > 0)
