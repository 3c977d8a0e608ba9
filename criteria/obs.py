"""Optimal Brain Surgeon on whole channels: what the readers lose once the channels that stay have made up for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxprune.arguments import require_options, shown
from fxprune.errors import CriterionError, FxPruneError
from fxprune.planning.plan import Plan
from fxprune.rewriting.correction import corrected
from fxprune.scoring.context import Context
from fxprune.scoring.moments import Inputs
from fxprune.scoring.score import resolve


@dataclass(frozen=True)
class Obs:
    """The rise of the squared error of a channel's readers, after the best correction of their other weights.

    For a reader y = W x with the second moments H = E[x xᵀ] + damping · mean(diag H) · 1 of its input, and the columns
    P of W that go with channel c,

        min E‖W x − W' x‖²  over W' with W'_P = 0    is    score_W(c) = tr( W_P ([H⁻¹]_PP)⁻¹ W_Pᵀ )
        score(c) = Σ over its readers of score_W(c), relative to the group's mean

    which is w_c² / [H⁻¹]_cc for each row where P is one column.  A convolution reads x at every place, all taps of its
    kernel with the same H: what a channel's place can be predicted from are the other channels there.

    `compensate` corrects weights and biases, all taps of a convolution's kernel, layer by layer in the order in which
    they run: each for the inputs that it loses and for what the layers before it, already pruned and corrected, still
    get wrong, on the stream that it is added to as well (`fxprune.rewriting.regression`).  With `weigh`, samples and
    places count by how much the loss depends on what the layer gives there, as far as there are enough of them
    (`fxprune.rewriting.weighing`); without a loss, the outputs stand for it.  Moments are means over the data; those of
    a diffusion model hold times as often as `timesteps=` says.  Text and image streams of one attention
    are readers of the same heads, and each is corrected on its own.

    Both models run over the data once, all batches side by side, halted where a layer runs until it is fitted.  Where a
    layer runs twice, several processes share the work, or memory does not hold the batches (a DataLoader is not kept
    there; its `list` is), they run once for each input that layers read.

    Options: `damping`, relative; `weigh`, off: all samples and places count alike; `together`, for how many inputs one
    pass does then (more is quicker, and less exact: their readers do not see each other's corrections); `select`,
    another criterion that chooses the channels, whose needs are then added: `Obs(select="gradflow")`.

    Needs data, and either a loss that runs the model or batches that are its inputs; forward passes, and to weigh one
    backward pass of each batch (where that fails, all count alike, and the report says so); for each reader I² numbers
    for I input channels to score, (I · taps)² to correct.  More data than the columns of the widest
    layer are worth having.  Shape: one score a channel of each group that a weight reads, ≥ 0, in squared units of the
    layers' output before the division; the other groups come last.
    Errors: InputsError without data; CriterionError for damping ≤ 0, or where activations are NaN or infinite.
    Source: Hassibi and Stork, Optimal Brain Surgeon, NIPS 1992; Frantar and Alistarh, SparseGPT, ICML 2023; structured
    Kurtić et al., ZipLM, NeurIPS 2023, and OBS-Diff, ICLR 2026 (arXiv 2510.06751).

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.eye(2), "1.weight": torch.tensor([[2.0, 2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.ones(1, 2),), {}))
    >>> data = [torch.tensor([[2.0, 0.0], [0.0, 1.0]])]  # H = diag(2, 1/2): nothing makes up for anything
    >>> score(graph, net, Obs(damping=1e-9), data=data, normalize="none").values["0.weight:0"].round(4).tolist()
    [8.0, 2.0]
    """

    damping: float = 0.01
    together: int = 1
    select: Any = None
    weigh: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"data", "forward"})
    moments: ClassVar[str] = "covariances"
    normalization: ClassVar[str] = "mean"
    partial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_options(self, CriterionError)
        if not self.damping > 0:
            raise CriterionError(f"Obs(damping={self.damping}): must be positive, such as 0.01, or H has no inverse")
        if self.together < 1:
            raise CriterionError(f"Obs(together={self.together}): must be at least 1, layers corrected at a time")
        if self.select is not None:
            try:
                chosen = resolve(self.select)[0]
            except FxPruneError as e:
                raise CriterionError(f"Obs(select={shown(self.select)}): {e}") from e
            for name in ("reduction", "normalization", "partial"):
                object.__setattr__(self, name, getattr(chosen, name, None))
            object.__setattr__(self, "needs", self.needs | frozenset(getattr(chosen, "needs", ())))

    @torch.no_grad()
    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Group name -> one score a channel; or what `select` returns."""
        if self.select is not None:
            with torch.enable_grad():
                return dict(resolve(self.select)[0](ctx))
        scores: dict[str, Tensor] = {}
        for reader in self._readers(ctx):
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.moment))
            columns = _columns(ctx.tensors[reader.weight], reader)
            for group in ctx.graph.groups:
                for s in group.slices:
                    if (s.tensor, s.axis) == (reader.weight, reader.axis):
                        positions = torch.from_numpy(s.positions).to(inverse.device)
                        part = _loss(columns, inverse, positions)
                        scores[group.name] = scores[group.name] + part if group.name in scores else part
        return scores

    @torch.no_grad()
    def compensate(self, ctx: Context, plan: Plan) -> dict[str, Tensor]:
        """New values of the layers that lose a part of their input, and of those after them."""
        return corrected(ctx, plan, self.damping, self.together, self.weigh)

    def _readers(self, ctx: Context) -> Iterator[Inputs]:
        """Moments of every reader in double precision, damped; without those of transposed grouped convolutions."""
        for reader in ctx.inputs(covariance=True).values():
            if reader.axis == 0 and reader.groups > 1:
                continue
            h = reader.moment.double()
            if not bool(torch.isfinite(h).all()):
                raise CriterionError(
                    f"{ctx.who}: the input of {reader.weight} holds NaN or infinite values; check weights and data"
                )
            mean = h.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(h.dtype).tiny)
            damped = h + self.damping * mean[:, None, None] * torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
            yield Inputs(reader.weight, reader.axis, reader.groups, damped, reader.alone)


def _columns(weight: Tensor, reader: Inputs) -> Tensor:
    """(groups, inputs, outputs · taps) of a weight, a copy in double precision."""
    wide = weight.detach().double()
    if reader.groups == 1:
        return wide.movedim(reader.axis, 0).flatten(1)[None].clone()
    return wide.reshape(reader.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(2).clone()


def _loss(columns: Tensor, inverse: Tensor, positions: Tensor) -> Tensor:
    """Σ over groups of tr(W_P ([H⁻¹]_PP)⁻¹ W_Pᵀ), for positions P (channels, m): (channels,)."""
    block = inverse[:, positions[:, :, None], positions[:, None, :]]
    part = columns[:, positions]
    out: Tensor = (part * torch.linalg.solve(block, part)).sum((0, 2, 3))
    return out
