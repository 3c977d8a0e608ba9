"""Magnitude: small weights matter little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxprune.arguments import require_options
from fxprune.errors import CriterionError
from fxprune.scoring.context import Context
from fxprune.scoring.elementwise import Elementwise


@dataclass(frozen=True)
class Magnitude:
    """The mean of |w|^p over all elements of a channel, relative to its group: p = 2 is L2, p = 1 is L1.

        score(c) = mean_{e ∈ E(c)} |w_e|^p  /  mean over the group's channels of the same

    Every tensor that a channel cuts counts: weights on both sides, biases, norm affine parameters, and buffers that act
    as weights (a sin-cos position embedding), but no running statistics.  The mean makes groups of different sizes
    comparable, the division those of different scales.  Needs neither data nor a loss.

    Shape and units: a saliency of each tensor's own shape, in (weight units)^p before the division, ≥ 0.
    Errors: CriterionError where p ≤ 0, or where weights are NaN.
    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (L1); the group-wise form follows Fang et al.,
    DepGraph, CVPR 2023.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [1.0]]), "1.weight": torch.tensor([[3.0, 1.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> score(graph, net, Magnitude(p=1)).values["0.weight:0"].tolist()  # 3 and 1, over their mean
    [1.5, 0.5]
    """

    p: float = 2.0
    reduction: ClassVar[str] = "mean"
    normalization: ClassVar[str] = "mean"
    sharded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_options(self, CriterionError)
        if not self.p > 0:
            raise CriterionError(f"Magnitude(p={self.p}): p must be positive; use p=1 for L1 or p=2 for L2")

    def __call__(self, ctx: Context) -> dict[str, Elementwise]:
        """Saliency |w|^p of every parameter and weight-like buffer."""
        return {name: Elementwise(w, self._power) for name, w in {**ctx.parameters, **ctx.buffers}.items()}

    def _power(self, w: Tensor) -> Tensor:
        return w * w if self.p == 2 else w.abs().pow(self.p)
