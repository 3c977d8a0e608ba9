"""Is a plan right?  Read off the shapes that its ops would meet, by no code of the planner's.

Every op of the traced graph is looked at with the channels that go taken out: a group norm must find whole groups of
one size, a grouped convolution as many channels in each of its groups, a view as many elements as before it, and a
contraction two axes of one length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx

import fxprune

VIEWS = ("view", "reshape", "flatten", "unflatten")


def violations(graph: fxprune.ChannelGraph, plan: fxprune.Plan, **limits: Any) -> list[str]:
    """Every constraint that a plan breaks, in words."""
    stays = np.ones(int(graph.component.max()) + 1, bool)
    for group in graph.groups:
        stays[group.components[list(plan.removed.get(group.name, ()))]] = False
    out = [f"{node.name}: {text}" for node in graph.traced.graph.nodes for text in _at(_Node(graph, node, stays), plan)]
    return [*out, *_limits(graph, plan, **limits), *_costs(graph, plan, stays)]


class _Node:
    """A node and the positions of its values that stay."""

    def __init__(self, graph: fxprune.ChannelGraph, node: fx.Node, stays: Any) -> None:
        self.graph, self.node, self.stays = graph, node, stays
        self.op = str(node.target).split(".")[1] if node.op == "call_function" and "." in str(node.target) else ""

    def axis(self, value: Any, dim: int) -> Any:
        """Which positions of an axis stay."""
        shape = value.meta["val"].shape
        labels = self.graph.env[value][dim]
        return np.ones(shape[dim], bool) if labels is None else self.stays[self.graph.component[labels]]

    def shape(self, value: Any) -> tuple[int, ...]:
        return tuple(int(self.axis(value, d).sum()) for d in range(len(value.meta["val"].shape)))


def _at(at: _Node, plan: fxprune.Plan) -> Iterator[str]:
    args = at.node.args
    if at.op == "group_norm":
        yield from _group_norm(at.axis(args[0], 1).reshape(args[1], -1).sum(1), plan.norms.get(at.node.name))
    elif at.op.startswith("conv") and "transpose" not in at.op:
        groups = args[6] if len(args) > 6 else 1
        each = [at.axis(args[0], 1).reshape(groups, -1).sum(1), at.axis(args[1], 0).reshape(groups, -1).sum(1)]
        if groups == 1 and each[0].sum() != at.axis(args[1], 1).sum():
            yield "reads another number of channels than it is given"
        if any(len(set(e[e > 0].tolist())) != 1 for e in each) or not np.array_equal(each[0] > 0, each[1] > 0):
            yield f"groups of {each[0].tolist()} channels make {each[1].tolist()}"
    elif at.op == "linear":
        if at.shape(args[0])[-1] != at.shape(args[1])[1]:
            yield "reads another number of channels than it is given"
    elif at.op == "scaled_dot_product_attention":
        q, k, v = (at.shape(a) for a in args[:3])
        if q[-1] != k[-1] or k[-2] != v[-2] or q[1] != k[1] or k[1] != v[1]:
            yield f"attends {q} to {k} and {v}"
    elif at.op in VIEWS and math.prod(at.shape(args[0])) != math.prod(at.shape(at.node)):
        yield f"makes {at.shape(at.node)} of {at.shape(args[0])}"
    elif at.op == "add" and all(isinstance(a, fx.Node) and "val" in a.meta for a in args[:2]):
        a, b = (at.shape(x)[::-1] for x in args[:2])
        if any(i != j and 1 not in (i, j) for i, j in zip(a, b, strict=False)):
            yield f"adds {a[::-1]} to {b[::-1]}"


def _group_norm(sizes: Any, change: Any) -> Iterator[str]:
    alive = sizes[sizes > 0]
    if change is None:
        if len(set(sizes.tolist())) != 1 or not len(alive):
            yield f"groups of sizes {sizes.tolist()}"
    elif change.exact:
        if len(set(alive.tolist())) != 1 or len(alive) != change.after:
            yield f"{change.after} whole groups are said to stay, of {sizes.tolist()}"
    elif not 1 <= change.after <= change.before or sizes.sum() % change.after:
        yield f"{sizes.sum()} channels do not make {change.after} groups"


def _limits(
    graph: fxprune.ChannelGraph,
    plan: fxprune.Plan,
    *,
    ignore: tuple[str, ...] = (),
    min_width: int = 1,
    max_ratio: float = 1.0,
    round_to: int = 1,
    exact_norms: bool = False,
    scope: str = "global",
) -> Iterator[str]:
    normed = {
        graph.channel_of.get(int(c), (None,))[0] for n in graph.facts.norm_groups for c in graph.component[n.axis]
    }
    for i, group in enumerate(graph.groups):
        gone = len(plan.removed.get(group.name, ()))
        width = len(group) - gone
        if width < min(len(group), min_width) or width < 1:
            yield f"{group.name} keeps {width}"
        if gone > max_ratio * len(group) + 1e-6:
            yield f"{group.name} loses {gone} of {len(group)}"
        if gone and i not in normed and width % round_to:
            yield f"{group.name} keeps {width}, no multiple of {round_to}"
        if gone and any(s.tensor.startswith(name) for s in group.slices for name in ignore):
            yield f"{group.name} loses channels and is ignored"
    if exact_norms and plan.regrouped:
        yield f"{plan.regrouped} are regrouped"


def _costs(graph: fxprune.ChannelGraph, plan: fxprune.Plan, stays: Any) -> Iterator[str]:
    count = graph.outside
    for name in graph.parameters:
        axes = zip(graph.tensors[name], graph.shapes[name], strict=True)
        count += math.prod(n if labels is None else int(stays[graph.component[labels]].sum()) for labels, n in axes)
    if count != plan.cost("params"):
        yield f"{count} parameters stay, the plan says {plan.cost('params')}"
    before, after = plan.costs[plan.of]
    if abs(1 - after / before - plan.achieved) > 1e-9:
        yield f"{plan.of} {before} -> {after} is said to be {plan.achieved}"
