"""Norm scales: a channel that its norm scales down is about to vanish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from fxprune.graph.rules.op import op_name
from fxprune.scoring.context import Context

NORMS = {f"aten::{n}" for n in ["batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"]}


@dataclass(frozen=True)
class BnScale:
    """|γ|, the mean over the norms that scale a channel: batch, instance, group, layer and RMS norms.

        score(c) = mean_γ |γ_c|

    It says something where training has pushed the scales apart, by an L1 penalty on γ or by weight decay; at the
    usual start all are one.  Norms are found in the graph, as the weights of norm ops, whatever their module.

    Needs neither data nor a loss.  Shape: a saliency of each γ's own shape, ≥ 0, without unit; groups without a norm
    come last.
    Errors: CriterionError where no channel that can go has a norm, or γ is NaN.
    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    >>> _ = net[1].weight.data.copy_(torch.tensor([-2.0, 0.5]))
    >>> score(analyse(net, ((torch.ones(1, 1),), {})), net, BnScale()).values["0.weight:0"].tolist()
    [2.0, 0.5]
    """

    reduction: ClassVar[str] = "mean"
    partial: ClassVar[bool] = True
    sharded: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Saliency |γ| of every norm's weight."""
        held = ctx.graph.traced.tensors
        scales = (_weight(n) for n in ctx.graph.traced.graph.nodes if op_name(n.target) in NORMS)
        names = {held[w.name] for w in scales if w is not None and w.name in held}
        return {name: ctx.tensors[name].abs() for name in sorted(names & ctx.tensors.keys())}


def _weight(node: fx.Node) -> fx.Node | None:
    """A norm's scale among its arguments."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    weight = given.get("weight")
    return weight if isinstance(weight, fx.Node) else None
