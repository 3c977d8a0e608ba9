"""Wanda: weights matter as far as what they multiply is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise
from fxprune.scoring.moments import roots


@dataclass(frozen=True)
class Wanda:
    """|W| times the norm of its input, the mean over a channel's elements, relative to its group.

        s_oi = |W_oi| √E[x_i²]
        score(c) = mean_{e ∈ E(c)} s_e  /  mean over the group's channels of the same

    for every weight of a linear layer, a convolution (x_i its input channel, at all places), or another product with a
    weight.  The expectation runs over samples and places, so that layers with more tokens weigh no more; Wanda's own
    norm is √n larger, which a layer's own ranking does not see.  A channel counts its weights as maker and as reader.

    Needs data, and either a loss that runs the model or batches that are its inputs; forward passes only.
    Shape: a saliency of each such weight's own shape, ≥ 0, in units of the layer's output; what multiplies nothing
    (biases, norms, tables, weights computed on the way) does not count, and groups that have nothing else come last.
    Errors: InputsError without data; CriterionError where activations are NaN or infinite.
    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [-1.0]]), "1.weight": torch.tensor([[1.0, 2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> score(graph, net, Wanda(), data=[torch.ones(1, 1)], normalize="none").values["0.weight:0"].tolist()
    [3.0, 1.5]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data", "forward"})
    moments: ClassVar[str] = "squares"
    reduction: ClassVar[str] = "mean"
    normalization: ClassVar[str] = "mean"
    partial: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, ctx: Context) -> dict[str, Elementwise]:
        """Saliency of every weight that multiplies something."""
        found = roots(ctx.inputs(), ctx.tensors)
        held = {name: (ctx.tensors[name], root) for name, root in found.items()}
        return {n: Elementwise(w, lambda x, r: x.abs() * r, (root.expand(w.shape),)) for n, (w, root) in held.items()}
