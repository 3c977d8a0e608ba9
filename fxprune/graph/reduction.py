"""What is left of a traced graph when some blocks are gone: fewer nodes, tensors, facts and equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from fxprune.graph.blocks import Cut, inside
from fxprune.graph.equations import Equation
from fxprune.graph.provenance import Attr, leaves
from fxprune.graph.rules.op import Facts
from fxprune.graph.trace import Traced


def reduced_trace(traced: Traced, after: Cut) -> tuple[Traced, dict[fx.Node, fx.Node]]:
    """The nodes that are still computed, as a graph of their own, by the old ones."""
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in traced.graph.nodes:
        if node in after.live or node.name in traced.inputs:
            new[node] = graph.node_copy(node, lambda n: new[after.resolve(n)])
    outputs = tuple(new[after.resolve(o)] if isinstance(o, fx.Node) else o for o in traced.outputs)
    names = {n.name for n in graph.nodes}
    calls = {k: kept for k, nodes in traced.calls.items() if (kept := [new[n] for n in nodes if n in new])}
    tensors = {k: v for k, v in traced.tensors.items() if k in names}
    constants = {k: v for k, v in traced.constants.items() if k in names}
    out = replace(traced, graph=graph, outputs=outputs, calls=calls, tensors=tensors, constants=constants)
    return out, new


def reduced_facts(facts: Facts, new: dict[fx.Node, fx.Node], cuts: Sequence[Cut]) -> Facts:
    """What is known of the nodes that are left; what an op reads may stand under the name of another value."""
    names = {n.name for n in new.values()}
    stand = {n: new[r] for after in cuts for n in after.instead if (r := after.resolve(n)) in new}
    now = {**stand, **new}
    return Facts(
        reads={k: [(now[n], axis) for n, axis in v if n in now] for k, v in facts.reads.items() if k in names},
        norm_groups=[n for n in facts.norm_groups if n.node in names],
        attended=[a for a in facts.attended if a.node in names],
        statistics={k: v for k, v in facts.statistics.items() if k in names},
        reduced=[r for r in facts.reduced if r.node in names],
        ordered=facts.ordered,
        multiples=facts.multiples,
        least=facts.least,
    )


def reduced_equations(
    equations: Sequence[Equation], modes: Sequence[Traced], modules: Sequence[str]
) -> tuple[Equation, ...]:
    """Equations of nodes that are left, but for what modules that are gone say."""
    names = {n.name for traced in modes for n in traced.graph.nodes}

    def holds(eq: Equation) -> bool:
        attrs = [x for x in leaves(eq.expr) if isinstance(x, Attr)]
        return (eq.node in names or " " in eq.node or not eq.node) and not any(
            inside(a.path, m) for a in attrs for m in modules
        )

    return tuple(eq for eq in equations if holds(eq))
