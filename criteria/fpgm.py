"""FPGM: a channel near the geometric median of its group can be replaced by the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.graph.groups import Group, Slice
from fxprune.scoring.context import Context


@dataclass(frozen=True)
class Fpgm:
    """The sum of distances from a channel's weights to those of all channels of its group, relative to the group.

        score(c) = Σ_c' ‖w_c − w_c'‖₂

    w_c is the vector of all weights that go with channel c, on both sides; the geometric median of the vectors is where
    this sum is smallest.  A small score says that the channel is redundant, not that it is small.

    Needs neither data nor a loss.  Shape: one score a channel of each group, ≥ 0, in weight units before the division
    by the group's mean; parameters and weight-like buffers count.  Time and memory: n² numbers for n channels.
    Errors: CriterionError where weights are NaN.
    Source: He et al., Filter Pruning via Geometric Median, CVPR 2019, there over the filters that make the channels.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[0.0], [3.0], [6.0]]), "1.weight": torch.tensor([[0.0, 4, 8]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 1),), {}))
    >>> score(graph, net, Fpgm(), normalize="none").values["0.weight:0"].tolist()  # (0, 0), (3, 4), (6, 8)
    [15.0, 10.0, 15.0]
    """

    normalization: ClassVar[str] = "mean"

    @torch.no_grad()
    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Group name -> one score a channel."""
        return {g.name: _distances(ctx, g).sum(1) for g in ctx.graph.groups}


def _distances(ctx: Context, group: Group) -> Tensor:
    """(n, n) distances between the channels of a group."""
    products = sum(
        x @ x.mT for x in (_vectors(ctx.tensors[s.tensor], s) for s in group.slices if s.tensor in ctx.tensors)
    )
    assert isinstance(products, Tensor)
    squares = products.diagonal()
    return (squares[:, None] + squares[None] - 2 * products).clamp_min(0).sqrt()


def _vectors(tensor: Tensor, cut: Slice) -> Tensor:
    """(n, elements) of one tensor, less their mean: distances stay, and lose fewer digits."""
    index = torch.from_numpy(cut.positions.reshape(-1)).to(tensor.device)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    vectors = (
        tensor.detach().index_select(cut.axis, index).movedim(cut.axis, 0).reshape(len(cut.positions), -1).to(wide)
    )
    return vectors - vectors.mean(0)
