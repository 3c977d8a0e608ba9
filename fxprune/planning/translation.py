"""A plan for a model that holds another one whole: the same with LoRA layers in it, with adapters, with more inputs.

What both have is known by the names of its tensors; what only the larger one has goes with whatever it is coupled to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fxprune.errors import PlanError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.planning.norms import norm_changes
from fxprune.planning.plan import Plan


def translated(plan: Plan, graph: ChannelGraph, other: ChannelGraph, named: Callable[[str], str]) -> Plan:
    """The plan for another graph.

    Args:
        graph: the one that the plan was made for.
        other: of a model that holds the same tensors, and more.
        named: the name in `other` of a tensor of `graph`.

    Raises:
        PlanError: it couples what the plan tells apart, or takes out blocks.
    """
    if plan.blocks:
        raise PlanError(
            "the plan takes out whole blocks, and a model with more in it may need them: plan with "
            "granularity='channel'"
        )
    keep = kept(plan, graph, other, named)
    removed = {g.name: tuple(np.flatnonzero(~keep[g.components]).tolist()) for g in other.groups}
    made = replace(
        plan,
        model=other.model_class,
        fingerprint=other.fingerprint,
        removed={name: gone for name, gone in removed.items() if gone},
        sizes={g.name: len(g) for g in other.groups},
        norms={},
        traced=(other.prefer[0] if other.prefer else "heads", *other.revisions),
        made_by=other.makers,
    )
    return replace(made, norms=norm_changes(other, keep))


def kept(plan: Plan, graph: ChannelGraph, other: ChannelGraph, named: Callable[[str], str]) -> Bools:
    """Which components of the other graph stay.

    Raises:
        PlanError: one of them holds positions that stay and others that go, or what goes is held there.
    """
    keep, whole = plan.kept(graph), graph.without(plan.blocks)
    stays, goes = np.zeros(len(other.keep_all()), bool), np.zeros(len(other.keep_all()), bool)
    for name, axes in whole.tensors.items():
        there = other.tensors.get(named(name))
        if there is None or other.shapes[named(name)] != whole.shapes[name]:
            continue
        for here, axis in zip(axes, there, strict=True):
            if here is None:
                continue
            left = keep[whole.component[here]]
            if axis is None:
                stays[0], goes[0] = True, goes[0] or not left.all()
                continue
            stays[other.component[axis][left]] = True
            goes[other.component[axis][~left]] = True
    if (stays & goes).any():
        where = next((g for g in other.groups if (stays & goes)[g.components].any()), None)
        what = f"group {where.name!r}" if where is not None else "what cannot be pruned there"
        raise PlanError(
            f"the plan fits no {other.model_class} with what is added to it: {what} couples channels that go with "
            "channels that stay; prune the model with it in place, fxprune.prune(model, ...)"
        )
    return ~goes
