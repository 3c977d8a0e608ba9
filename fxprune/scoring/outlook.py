"""What memory scoring will take, told before it starts: weights, gradients, activations and moments, in bytes.

    gradients     sums of the gradients, where they are kept in memory, and the gradient of one layer
    activations   of the largest batch: those that a backward pass reads, or the most that live at once without one
    moments       of what contractions read, for criteria that gather them

From the graph alone, so that it costs nothing; a bound, which gradient checkpointing undercuts.  Where the bound is
more than what is free, the pass is rehearsed on tensors without storage (`fxprune.scoring.foresight`), and only what
that finds is warned of.  What then runs out of memory all the same is taken in parts (`fxprune.scoring.parts`).
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.trace import last_uses
from fxprune.scoring.context import Context
from fxprune.scoring.foresight import (
    PASS,
    activations,
    bounded,
    gradient_bytes,
    kept_elsewhere,
    largest,
    one_pass,
)
from fxprune.scoring.free_memory import free_memory
from fxprune.scoring.parts import SMALLER
from fxprune.scoring.storage import LARGE, gib

log = logging.getLogger("fxprune")
FLOAT = 4  # bytes of a number in a sum


@dataclass(frozen=True)
class Outlook:
    """Bytes that scoring takes at most; `free` of them are, if the system tells."""

    weights: float
    gradients: float = 0.0
    activations: float = 0.0
    moments: float = 0.0
    free: float | None = None

    @property
    def beside(self) -> float:
        """Beside the weights."""
        return self.gradients + self.activations + self.moments

    @property
    def fits(self) -> bool:
        """Whether it does, as far as one can tell."""
        return self.free is None or self.beside <= self.free

    def __str__(self) -> str:
        named = {"gradients": self.gradients, "activations": self.activations, "moments": self.moments}
        told = ", ".join(f"{gib(n)} of {name}" for name, n in named.items() if n)
        free = "" if self.free is None else f"; {gib(self.free)} are free"
        return f"memory: at most {gib(self.beside)} beside {gib(self.weights)} of weights ({told or 'nothing'}){free}"


def outlook(ctx: Context, call: Any) -> Outlook:
    """What a criterion's passes over a context's data take.

    Args:
        call: the criterion; it may declare `needs` (see `fxprune.scoring.score`), `derivatives` (2 where it
            differentiates twice), and `moments` ("squares" or "covariances").
    """
    needs: frozenset[str] = getattr(call, "needs", frozenset())
    weights = float(sum(t.numel() * t.element_size() for t in (*ctx.model.parameters(), *ctx.model.buffers())))
    free = free_memory(ctx.device)
    if not needs & {"loss", "forward"}:
        return Outlook(weights, free=free)
    if "loss" not in needs:
        return Outlook(weights, 0.0, alive(ctx), _moments(ctx, call), free)
    if getattr(call, "derivatives", 1) > 1 and isinstance(ctx.batches, tuple):
        return Outlook(weights, gradient_bytes(ctx, FLOAT), bounded(ctx).least, 0.0, free)
    sums = 0.0 if kept_elsewhere(ctx) else gradient_bytes(ctx, FLOAT)
    layer = float(FLOAT * max((p.numel() for p in ctx.parameters.values()), default=0))
    return Outlook(weights, sums + layer, _scale(ctx) * PASS * sum(activations(ctx.graph)), 0.0, free)


def tell(ctx: Context, call: Any) -> None:
    """Log what scoring will take, note it where that is much, and warn where it does not fit."""
    seen = outlook(ctx, call)
    log.info("%s: %s", ctx.who, seen)
    if seen.beside > LARGE:
        ctx.note(str(seen))
    if seen.fits or "loss" not in getattr(call, "needs", ()) or getattr(call, "derivatives", 1) > 1:
        return  # the second derivative chooses its way itself, and refuses where there is none
    passed = one_pass(ctx)
    least = seen.beside if passed is None else min(seen.beside, seen.gradients + passed)
    if seen.free is not None and least > seen.free:
        warnings.warn(f"{ctx.who}: {seen}. What does not fit is taken in smaller parts; or {SMALLER}", stacklevel=3)


def alive(ctx: Context) -> float:
    """Bytes of values that live at once in a forward pass over the largest batch."""
    return _scale(ctx) * _alive(ctx.graph)


def _scale(ctx: Context) -> float:
    """The largest batch in memory, in the graph's example; streamed batches are taken to be like it."""
    held = ctx.batches if isinstance(ctx.batches, tuple) else ()
    example = max(1, largest(ctx.graph.traced.example))
    return max([1.0, *(largest(b) / example for b in held)])


def _alive(graph: ChannelGraph) -> float:
    """Bytes of values that live at once, each until its last use; views count with what they are of."""
    ends, held = last_uses(graph.traced.graph, graph.traced.outputs), dict[int, float]()
    users, peak = dict[int, int](), 0.0
    for node in graph.traced.graph.nodes:
        for key, size in _storages(node):
            held[key], users[key] = size, users.get(key, 0) + 1
        peak = max(peak, sum(held.values()))
        for key in (key for gone in ends.get(node, ()) for key, _ in _storages(gone)):
            users[key] -= 1
            if not users[key]:
                del held[key]
    return peak


def _storages(node: Any) -> list[tuple[int, float]]:
    values = [] if node.op == "placeholder" else pytree.tree_leaves(node.meta.get("val"))
    return [(v.untyped_storage()._cdata, float(v.numel() * v.element_size())) for v in values if isinstance(v, Tensor)]


def _moments(ctx: Context, call: Any) -> float:
    kind = getattr(call, "moments", "")
    power = {"squares": 1, "covariances": 2}.get(kind, 0)
    axes = [(n, d) for n, labels in ctx.graph.tensors.items() for d in range(1, len(labels))]
    wanted = [(n, d) for n, d in axes if power == 1 or (power and ctx.components(n, d).any())]
    return float(sum(FLOAT * ctx.graph.shapes[n][d] ** power for n, d in wanted))
