"""The integers that a module's Python computes with, as its constructor makes them, against those that a plan needs.

Shapes that fit 7 of 8 heads may as well be those of 8 narrower heads.  Which of them a constructor makes its numbers
tell, and much sooner than a comparison of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.equations import Equation, render
from fxprune.graph.labels import Bools
from fxprune.graph.program import group_counts
from fxprune.graph.provenance import Attr, Size, evaluate, leaves
from fxprune.planning.plan import Plan
from fxprune.stock.oracle import Refusal


def require_integers(made: nn.Module, graph: ChannelGraph, plan: Plan, keep: Bools) -> Refusal | None:
    """The first expression of the given model's Python that has another value in `made` than the plan needs."""
    groups = group_counts(graph, plan.norm_groups, keep)
    modules = dict(made.named_modules(remove_duplicate=False))

    def leaf(x: Attr | Size) -> int:
        return _held(modules, x) if isinstance(x, Attr) else graph.kept(graph.axis_of(x), keep, x.old)

    def needed(eq: Equation) -> int:
        return groups.get(eq.node, eq.old) if eq.groups else graph.kept(eq.axis, keep, eq.old)

    for eq in graph.equations:
        if not isinstance(eq.expr, int) and (value := evaluate(eq.expr, leaf)) != needed(eq):
            return Refusal(f"the shapes fit, but {render(eq.expr)} is {value} in what it makes, not {needed(eq)}")
    return None


def _held(modules: dict[str, nn.Module], x: Attr) -> int:
    """An attribute as the constructor made it."""
    owner: Any = modules.get(x.path)
    owner = getattr(owner, x.holder, None) if x.holder else owner
    value = owner.get(x.name, x.old) if isinstance(owner, Mapping) else getattr(owner, x.name, x.old)
    if x.index is not None and isinstance(value, (list, tuple)) and x.index < len(value):
        value = value[x.index]
    return value if isinstance(value, int) else x.old


def read_integers(graph: ChannelGraph) -> frozenset[tuple[str, str]]:
    """(path of a module, attribute) of every integer that the model's Python makes sizes of."""
    found = (x for eq in graph.equations for x in leaves(eq.expr) if isinstance(x, Attr))
    return frozenset((x.path, x.within) for x in found)
