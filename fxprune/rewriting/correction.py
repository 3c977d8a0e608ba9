"""All layers of a small model corrected, in the order in which they run (see `fxprune.rewriting.regression`).

Where all batches are in memory at once, both models run over them once, side by side; else once for each package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxprune.graph.channels import ChannelGraph
from fxprune.planning.plan import Plan
from fxprune.rewriting.regression import Found, Sums, moments, packages, put, readers, solved
from fxprune.rewriting.rewrite import UnsolvedError, rewrite
from fxprune.rewriting.side_by_side import side_by_side
from fxprune.rewriting.slicing import kept_positions, temperature_folds
from fxprune.rewriting.weighing import Roots, roots
from fxprune.scoring import distributed as ranks
from fxprune.scoring.context import Context
from fxprune.scoring.free_memory import free_memory
from fxprune.scoring.outlook import alive
from fxprune.scoring.parts import out_of_memory

MOST = 256  # batches side by side: each is two threads
SPARE = 0.5  # of the memory that is free


@dataclass
class Corrected:
    """A small model while its layers are fitted, and the new values of full size."""

    ctx: Context
    plan: Plan
    damping: float
    new: dict[str, Tensor] = field(default_factory=dict)
    layers: list[tuple[str, bool]] = field(default_factory=list)  # name, whether it saw few samples

    def __post_init__(self) -> None:
        self.keep: npt.NDArray[np.bool_] = self.plan.kept(self.ctx.graph)
        self.small = _small(self.ctx.model, self.ctx.graph, self.plan)
        self.held = {**dict(self.small.named_buffers()), **dict(self.small.named_parameters())}

    def fit(self, found: Found, sums: Sums) -> bool:
        """Give a layer new values; whether that changes any."""
        reader, graph = found.reader, self.ctx.graph
        assert reader is not None
        made = solved(self.ctx, reader, sums, kept_positions(graph, reader.weight, self.keep), self.damping)
        for name, full in made.items():
            put(self.held[name], full, kept_positions(graph, name, self.keep))
            self.new[name] = full
        if made:
            few = sums.rows * ranks.number() < torch.as_tensor(sums.own).shape[1]
            self.layers.append((reader.weight, few))
        return bool(made)


def corrected(ctx: Context, plan: Plan, damping: float, together: int, weigh: bool = True) -> dict[str, Tensor]:
    """Weight or bias -> new values, of the shape before pruning; where nothing changes, none.

    Args:
        ctx: model and data.
        plan: what goes.
        damping: λ, relative to the mean square of what a layer reads.
        together: inputs in a package, where not all batches run side by side; layers that read the same one go
            together.
        weigh: samples and places count by how much the loss depends on them; else alike.

    Raises:
        CriterionError: what a layer reads holds NaN or infinite values.
    """
    folded = {name for fold in temperature_folds(ctx.graph, plan.kept(ctx.graph)) for name in fold.names}
    done = Corrected(ctx, plan, damping)
    found = {name: f for name, f in readers(ctx, folded).items() if name in done.held}  # not what went with its block
    counts = roots(ctx, found) if weigh else []
    if not _at_once(done, found, counts):
        done = Corrected(ctx, plan, damping) if done.new else done  # what a pass that broke off has fitted is void
        for package in packages(found, together):
            for name, sums in moments(ctx, done.small, package, done.keep, counts):
                done.fit(found[name], sums)
    if few := [name for name, so in done.layers if so]:
        ctx.note(
            f"{len(few)} of {len(done.layers)} corrected layers, such as {few[0]}, saw fewer samples than they have "
            "columns and fit these samples more than the task: give data= more of them"
        )
    return done.new


def _at_once(done: Corrected, found: dict[str, Found], counts: Sequence[Roots]) -> bool:
    """All batches side by side; False where they cannot be: memory need not hold them."""
    ctx = done.ctx
    batches = ctx.batches
    if not isinstance(batches, tuple) or ranks.several() or len(batches) > MOST:
        return False
    free = free_memory(ctx.device)
    if free is not None and 2 * len(batches) * alive(ctx) > SPARE * free:
        return False
    try:
        side_by_side(ctx, batches, done.small, found, done.keep, done.fit, counts)
    except Exception as e:
        if not out_of_memory(e):
            raise
        return False
    return True


def _small(model: nn.Module, graph: ChannelGraph, plan: Plan) -> nn.Module:
    made: Any
    try:
        made = rewrite(model, graph, plan).model
    except UnsolvedError:
        made = rewrite(model, graph, plan, forward="graph").model
    small: nn.Module = made.eval()
    return small
