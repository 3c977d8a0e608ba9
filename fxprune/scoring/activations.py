"""What channels carry while the model runs: the mean of a statistic of every channel, where it is made or read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.scoring import distributed as ranks
from fxprune.scoring.context import Context
from fxprune.scoring.folding import Floats
from fxprune.scoring.observation import Call

Place: TypeAlias = Literal["made", "read"]
PLACES: tuple[Place, ...] = ("made", "read")
Statistic: TypeAlias = Callable[[Tensor], "Tensor | None"]
Key: TypeAlias = tuple[str, int, int]


def channel_means(ctx: Context, statistic: Statistic, at: Place, title: str) -> dict[str, Floats]:
    """Group name -> the mean of a statistic of each channel, over samples, places, and the contractions that carry it.

    Args:
        statistic: of values (n, channels, ...): one number or more a sample and channel, (n, channels, ...), or None
            where it is not defined.
        at: where a contraction with a weight makes the channel (its output), or where one reads it (its input).

    Groups that no contraction with a weight makes (or reads) are left out.
    """
    sums: dict[Key, Tensor] = {}
    counts: dict[Key, float] = {}

    def visit(call: Call) -> None:
        values, axis, start = (call.output, call.makes, call.start) if at == "made" else (call.inputs, call.reads, 0)
        if values is None or axis < 0 or (found := statistic(values)) is None:
            return
        key = (call.weight, axis, start)
        part = found.float().sum([d for d in range(found.dim()) if d != 1])
        sums[key] = sums[key].add_(part) if key in sums else part
        counts[key] = counts.get(key, 0) + found.numel() / found.shape[1]

    ctx.observe(visit, title)
    ranks.add_up(sums[k] for k in sorted(sums))
    means = ((k, sums[k] / ranks.total(counts[k], sums[k].device)) for k in sorted(sums))
    return over_groups(ctx.graph, ((_components(ctx, k, len(v)), v.double().cpu().numpy()) for k, v in means))


def _components(ctx: Context, key: Key, channels: int) -> Ints:
    """Component of every channel of a contraction's value; a grouped convolution's groups repeat its weight's axis."""
    name, axis, start = key
    own = ctx.components(name, axis)[start : start + channels]
    return np.tile(own, channels // len(own))


def over_groups(graph: ChannelGraph, parts: Iterable[tuple[Ints, Floats]]) -> dict[str, Floats]:
    """Group name -> mean over all positions of a channel; `parts` are components and values of positions."""
    total = np.zeros(int(graph.component.max()) + 1)
    count = np.zeros_like(total)
    for component, values in parts:
        np.add.at(total, component, values)
        np.add.at(count, component, 1)
    known = (g for g in graph.groups if count[g.components].all())
    return {g.name: total[g.components] / count[g.components] for g in known}
