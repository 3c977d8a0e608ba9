"""A third party's criterion, in the smallest package that can hold one."""

from __future__ import annotations

from fxprune.scoring.context import Context


class LastFirst:
    """Prune the last channel of a group first."""

    def __call__(self, ctx: Context) -> dict[str, list[float]]:
        """Group name -> one score a channel."""
        return {g.name: [float(len(g) - k) for k in range(len(g))] for g in ctx.graph.groups}
