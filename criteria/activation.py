"""Activation: channels that carry little matter little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fxprune.arguments import TEXT, require_options
from fxprune.errors import CriterionError
from fxprune.scoring.activations import PLACES, Place, channel_means
from fxprune.scoring.context import Context
from fxprune.scoring.folding import Floats


@dataclass(frozen=True)
class Activation:
    """How much a channel carries, over samples and places, relative to its group.

        statistic="mean"    E|a_c|
        statistic="l2"      √E[a_c²]
        statistic="apoz"    E[a_c > 0], which is one less the average percentage of zeros behind a ReLU

    at="made" looks at the outputs of the linear layers, convolutions and tables that make the channel, at="read" at the
    inputs of those that read it: behind norm and activation function, so the place for `apoz` where a norm stands
    between.  A channel with several positions or makers has their mean, then all are divided by the group's mean.

    Needs data, and either a loss that runs the model or batches that are its inputs; forward passes only.
    Shape: one score a channel of each group, ≥ 0, in the activations' unit before the division; groups that no weight
    makes (or reads) come last.
    Errors: InputsError without data; CriterionError for an unknown statistic or place, or NaN activations.
    Source: Hu et al., Network Trimming, 2016 (APoZ); Molchanov et al., Pruning Convolutional Neural Networks for
    Resource Efficient Inference, ICLR 2017 (mean activation).

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [-1.0]]), "2.weight": torch.tensor([[1.0, 2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> score(graph, net, Activation(), data=[torch.ones(1, 1)]).values["0.weight:0"].tolist()  # 3 and 1
    [1.5, 0.5]
    >>> score(graph, net, Activation(at="read"), data=[torch.ones(1, 1)]).values["0.weight:0"].tolist()  # 3 and 0
    [2.0, 0.0]
    """

    statistic: Literal["mean", "l2", "apoz"] = "l2"
    at: Place = "made"
    needs: ClassVar[frozenset[str]] = frozenset({"data", "forward"})
    normalization: ClassVar[str] = "mean"
    partial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_options(self, CriterionError, statistic=TEXT, at=TEXT)
        if self.statistic not in ("mean", "l2", "apoz"):
            raise CriterionError(f"Activation(statistic={self.statistic!r}): use 'mean', 'l2' or 'apoz'")
        if self.at not in PLACES:
            raise CriterionError(f"Activation(at={self.at!r}): use 'made' or 'read'")

    def __call__(self, ctx: Context) -> dict[str, Floats]:
        """Group name -> one score a channel."""
        means = channel_means(ctx, self._of, self.at, "activations")
        return {g: np.sqrt(v) for g, v in means.items()} if self.statistic == "l2" else means

    def _of(self, values: Tensor) -> Tensor:
        if self.statistic == "apoz":  # NaN is not above zero, and must not pass for a silent channel
            return torch.where(values.isnan(), values, (values > 0).to(values.dtype))
        return values.float().square() if self.statistic == "l2" else values.abs()
