"""HRank: feature maps of low rank hold little information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.arguments import require_options
from fxprune.errors import CriterionError
from fxprune.scoring.activations import channel_means
from fxprune.scoring.context import Context
from fxprune.scoring.folding import Floats


@dataclass(frozen=True)
class HRank:
    """The mean rank of a channel's feature maps, relative to its group.

        score(c) = E[rank A_c],   A_c the (height, width) map of one sample where a convolution makes it
        exact=False   rank A ≈ ‖A‖_F⁴ / ‖A Aᵀ‖_F² = (Σ σ²)² / Σ σ⁴      the participation ratio of the singular values
        exact=True    the number of singular values above rounding error

    The ratio runs from 1 (one singular value) to the side of the map (all equal); it takes one product a map where the
    exact rank takes a singular value decomposition, and it tells maps apart that are all of full rank.

    Needs data, and either a loss that runs the model or batches that are its inputs; forward passes only.
    Shape: one score a channel of each group that a convolution in two or three dimensions makes, ≥ 0, without unit; the
    other groups come last.
    Errors: InputsError without data; CriterionError where activations are NaN, or no convolution makes any channel.
    Source: Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020 (exact=True).

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1, bias=False), torch.nn.Conv2d(2, 1, 1))
    >>> _ = torch.nn.init.dirac_(net[0].weight)
    >>> x = torch.stack([torch.ones(4, 4), torch.eye(4)])[None]  # rank 1 and rank 4
    >>> score(analyse(net, ((x,), {})), net, HRank(), data=[x], normalize="none").values["0.weight:0"].tolist()
    [1.0, 4.0]
    """

    exact: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"data", "forward"})
    normalization: ClassVar[str] = "mean"
    partial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_options(self, CriterionError)

    def __call__(self, ctx: Context) -> dict[str, Floats]:
        """Group name -> one score a channel."""
        return channel_means(ctx, self._rank, "made", "feature maps")

    def _rank(self, values: Tensor) -> Tensor | None:
        """(n, channels) of maps (n, channels, height, width...)."""
        if values.dim() < 4:
            return None
        maps = values.float().flatten(3)
        if self.exact and bool(maps.isfinite().all()):  # else NaN goes through, for the core to find
            exact: Tensor = torch.linalg.matrix_rank(maps)
            return exact.float()
        maps = maps / torch.linalg.matrix_norm(maps, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
        short = maps if maps.shape[2] <= maps.shape[3] else maps.mT
        size = torch.linalg.matrix_norm(short @ short.mT).square()
        rank: Tensor = torch.where(size > 0, 1 / size, size)
        return rank
