"""What a plan did to a model, layer by layer and group by group: what the tables and the picture of a report show.

Anatomy
  layers: Layer ...     modules with tensors of their own: shapes, parameters and multiply-accumulates, before and after
  groups: Choice ...    channels, and the scores that decided which of them stay
  frozen: Held ...      axes that cannot be pruned, and why
  links                 which layer's channels reach which, for the picture
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.groups import Held
from fxprune.graph.labels import Bools
from fxprune.planning.costs.macs import macs_of
from fxprune.planning.plan import Plan
from fxprune.scoring.score import Scores

Shape = tuple[int, ...]
JOIN = "+"  # before the names of places where several layers' values meet


@dataclass(frozen=True)
class Layer:
    """A module and the tensors that are its own: (name in it, shape before, shape after; none where it went)."""

    name: str
    kind: str
    tensors: tuple[tuple[str, Shape, Shape | None], ...]
    params: tuple[int, int]
    macs: tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """A group before and after; `kept` and `gone` are the lowest, middle and highest score of its channels."""

    name: str
    kind: str
    before: int
    after: int
    tensors: tuple[str, ...]
    kept: tuple[float, ...] = ()
    gone: tuple[float, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """See the module.  A link is (layer or join, layer or join, name of the group whose channels pass, or "")."""

    layers: tuple[Layer, ...]
    groups: tuple[Choice, ...]
    frozen: tuple[Held, ...]
    links: tuple[tuple[str, str, str], ...]


def anatomy(graph: ChannelGraph, plan: Plan, scores: Scores | None = None) -> Anatomy:
    """What a plan does to the model of a graph.

    Args:
        graph: that the plan was made for.
        plan: made by `scores`, where there are some.
        scores: see `Choice`; None: a training run decided by others.
    """
    keep, left = plan.kept(graph), graph.without(plan.blocks)
    return Anatomy(
        layers=tuple(_layers(graph, left, keep)),
        groups=tuple(_choices(left, plan, scores)),
        frozen=tuple(_frozen(graph)),
        links=tuple(dict.fromkeys(_links(graph))),
    )


def _frozen(graph: ChannelGraph) -> Iterator[Held]:
    """Axes of parameters that cannot go, kernels' positions left out; of a source's path, its package or name alone."""
    for held in graph.frozen():
        if held.tensor in graph.parameters and held.cause != "spatial axis":
            file, _, rest = held.source.removeprefix('File "').partition('", line ')
            own = file.rpartition("site-packages/" if "site-packages/" in file else "/")[2]
            yield replace(held, source=f"{own}:{rest}" if rest else "")


def _layers(graph: ChannelGraph, left: ChannelGraph, keep: Bools) -> Iterator[Layer]:
    macs = _macs(graph, graph.keep_all()), _macs(left, keep)
    tensors: dict[str, list[str]] = {path: [] for path in macs[0]}
    for name in graph.tensors:
        tensors.setdefault(name.rpartition(".")[0], []).append(name)
    for path, names in tensors.items():
        shapes = {n: (graph.shapes[n], _shape(left, n, keep)) for n in names}
        params = [_elements([s[k] for n, s in shapes.items() if n in graph.parameters]) for k in (0, 1)]
        kind = next((k.__name__ for n in names if (k := graph.within.get(n, {}).get(path)) is not None), "")
        yield Layer(
            path or graph.model_class,
            kind or "computes with no tensor of its own",
            tuple((n.rpartition(".")[2], *s) for n, s in shapes.items()),
            (params[0], params[1]),
            (macs[0].get(path, 0.0), macs[1].get(path, 0.0)),
        )


def _shape(left: ChannelGraph, name: str, keep: Bools) -> Shape | None:
    if name not in left.tensors:
        return None
    return tuple(left.kept(a, keep, n) for a, n in zip(left.tensors[name], left.shapes[name], strict=True))


def _elements(shapes: Sequence[Shape | None]) -> int:
    return sum(math.prod(s) for s in shapes if s is not None)


def _macs(graph: ChannelGraph, keep: Bools) -> dict[str, float]:
    """Module -> multiply-accumulates that its own code issues, in the order of the forward."""
    out: dict[str, float] = defaultdict(float)
    for node in graph.traced.graph.nodes:
        if macs := macs_of(graph, node, keep):
            out[node.meta.get("fxprune_module", "")] += macs
    return dict(out)


def _choices(graph: ChannelGraph, plan: Plan, scores: Scores | None) -> Iterator[Choice]:
    for group in graph.groups:
        gone = np.zeros(len(group), bool)
        gone[list(plan.removed.get(group.name, ()))] = True
        values = None if scores is None or group.name in scores.unscored else scores.values.get(group.name)
        spread: list[tuple[float, ...]] = [(), ()]
        if values is not None and len(values) == len(group):
            spread = [_spread(values[~gone]), _spread(values[gone])]
        tensors = tuple(dict.fromkeys(s.tensor for s in group.slices))
        yield Choice(group.name, group.kind, len(group), int((~gone).sum()), tensors, spread[0], spread[1])


def _spread(values: Any) -> tuple[float, ...]:
    return tuple(float(f(values)) for f in (np.min, np.median, np.max)) if len(values) else ()


# ---- the picture -------------------------------------------------------------------------------------------------


def _links(graph: ChannelGraph) -> Iterator[tuple[str, str, str]]:
    """Which layer's values reach which, with a place of its own where several meet, so that links stay few."""
    weights = {n for n in graph.traced.graph.nodes if n.name in graph.traced.tensors}
    made = {s.tensor: g.name for g in graph.groups for s in g.slices if s.axis == 0}
    leaving: dict[str, str] = {}
    sources: dict[fx.Node, tuple[str, ...]] = dict.fromkeys(weights, ())
    for node in graph.traced.graph.nodes:
        if node in weights:
            continue
        come = tuple(dict.fromkeys(s for n in node.all_input_nodes for s in sources.get(n, ())))
        own = [graph.traced.tensors[n.name] for n in node.all_input_nodes if n in weights]
        here = own[0].rpartition(".")[0] or graph.model_class if own else ""
        if not own and len(come) < 2:
            sources[node] = come
            continue
        here = here if own else f"{JOIN}{node.name}"
        leaving[here] = made.get(own[0], "") if own else next((leaving[s] for s in come if leaving[s]), "")
        yield from ((s, here, leaving[s]) for s in come if s != here)
        sources[node] = (here,)
