"""Weights that make up for the channels of a plan, where a criterion knows how.

A criterion may have, beside `__call__`, a method

    compensate(ctx, plan) -> {tensor name: new values, of the tensor's shape before pruning}

Masked = dense is then a statement about the compensated weights: nothing else changes on the way to the dense model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import CriterionError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.copies import deep_copy
from fxprune.graph.modules import seed_torch
from fxprune.planning.plan import Plan
from fxprune.scoring.context import Context, Loss
from fxprune.scoring.preservation import unchanged
from fxprune.scoring.score import Criterion, resolve


def makes_up(criterion: str | type[Any] | Criterion) -> bool:
    """Whether a criterion corrects what stays."""
    return callable(getattr(resolve(criterion)[0], "compensate", None))


def compensated(
    graph: ChannelGraph,
    model: nn.Module,
    plan: Plan,
    criterion: str | type[Any] | Criterion,
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    progress: bool = False,
    reuse: dict[Any, Any] | None = None,
    notes: list[str] | None = None,
) -> nn.Module:
    """A copy of the model, still of its full size, with new values for the weights that stay; or the model itself.

    Args:
        graph, model, criterion, data, loss, seed, progress, reuse: as for `fxprune.score`.
        plan: what goes.
        notes: takes what the criterion has to say about it.

    Raises:
        CriterionError: the criterion changed the model, or returned an unknown name, a wrong shape or NaN.
    """
    if not makes_up(criterion) or not (plan.blocks or any(plan.removed.values())):
        return model
    call: Any
    call, name, package = resolve(criterion)
    ctx = Context(graph, model, name, data, loss, seed, progress, package, {} if reuse is None else reuse)
    with unchanged(model, ctx.who):
        seed_torch(model, seed)
        new = call.compensate(ctx, plan)
    if notes is not None:
        notes.extend(ctx.notes)
    _check(ctx, new)
    return deep_copy(model, [(ctx.tensors[n], _like(ctx.tensors[n], values)) for n, values in new.items()])


def _check(ctx: Context, new: Any) -> None:
    if not isinstance(new, Mapping):
        raise CriterionError(f"{ctx.who}: compensate() returned a {type(new).__name__}; return {{tensor: new values}}")
    for name, values in new.items():
        if name not in ctx.tensors:
            raise CriterionError(f"{ctx.who}: compensate() returned {name!r}, which is no tensor of the graph")
        if tuple(values.shape) != ctx.graph.shapes[name] or not bool(torch.isfinite(values).all()):
            raise CriterionError(
                f"{ctx.who}: compensate() returned {name} of shape {tuple(values.shape)}, or with NaN; return finite "
                f"values of the tensor's shape before pruning, {ctx.graph.shapes[name]}"
            )


def _like(old: Tensor, values: Tensor) -> Tensor:
    new = torch.empty_like(old).copy_(values.detach())
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
