"""The channel graph: which positions of which tensors form one channel, and what keeps the others from going.

ChannelGraph
  groups: Group ...     channels with the same slices
    channels            one component a channel
    slices: Slice ...   (tensor, axis, positions of each channel)
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import torch
from torch import fx, nn

from fxprune.graph.equations import AxisOf, Equation, call_equations, couple, is_factor, locate, render
from fxprune.errors import PlanError
from fxprune.graph.labels import Axis, Bools, Freeze, Ints, LabelSpace, Resolved, resolve
from fxprune.graph.provenance import Attr, Expr, Size, leaves
from fxprune.graph.rules.op import Facts, Labels, Op, frozen_like, op_name, rule_for
from fxprune.graph.temperature import query_rows
from fxprune.graph.trace import Inputs, Traced, capture, lineage, tensor_names

COARSER, UNCOUPLED = "coarser", "uncoupled"

if TYPE_CHECKING:
    from fxprune.graph.blocks import Block


@dataclass(frozen=True)
class Slice:
    """The positions along `axis` of `tensor` of each channel of a group: an array (channels, positions a channel)."""

    tensor: str
    axis: int
    positions: Ints

    def __repr__(self) -> str:
        n, m = self.positions.shape
        return f"{self.tensor}[{self.axis}] ({n} x {m})"


@dataclass(frozen=True)
class Group:
    """Channels that occupy the same axes: `components[c]` is channel c's component."""

    name: str
    components: Ints
    slices: tuple[Slice, ...]
    kind: str = "channels"

    def __len__(self) -> int:
        return len(self.components)

    def __repr__(self) -> str:
        more = f", and {len(self.slices) - 3} more" if len(self.slices) > 3 else ""
        return f"{self.name}: {len(self)} {self.kind} in {', '.join(map(repr, self.slices[:3]))}{more}"


@dataclass(frozen=True)
class Held:
    """A tensor axis that cannot be pruned, or only in part: how many positions, and why."""

    tensor: str
    axis: int
    positions: int
    cause: str
    why: str
    op: str
    source: str


@dataclass
class ChannelGraph:
    """Everything that is known about a traced model's channels.  Made by `fxprune.trace`.

    Attributes:
        env: labels of every node's value.
        tensors, shapes: labels and shapes of every parameter and buffer that the graph uses, by canonical name.
        parameters: which of these are parameters.
        outside: number of parameters that the forward does not use.
        stated: how many of `space.freezes` the rules stated (the others follow from decisions about splits).
        equations: what the model's Python needs its integers to be (see `fxprune.graph.equations`).
        literals: the same for integers of unknown origin.
        removed: names of the blocks that are gone from it; `whole` is the graph that holds them, too.
        fixed: names of blocks that cannot go: the module does not follow.
        bare: what the rules alone stated, without what the module's Python needs.
        within: tensor -> its names (tied ones have several) and the modules around it, each with its class.
        revisions: how `holding`, `coarser` and `uncoupled` made this graph from the traced one (see `revised`).
    """

    traced: Traced
    model_class: str
    env: dict[fx.Node, Any]
    tensors: dict[str, Labels]
    shapes: dict[str, tuple[int, ...]]
    parameters: frozenset[str]
    space: LabelSpace
    facts: Facts
    resolved: Resolved
    equations: tuple[Equation, ...]
    literals: tuple[Equation, ...]
    axis_of: AxisOf
    bare: LabelSpace
    outside: int = 0
    prefer: tuple[str, ...] = ()
    owned: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    stated: int = 0
    fine: bool = True
    whole: ChannelGraph | None = None
    removed: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()
    within: Mapping[str, Mapping[str, type]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ()
    groups: tuple[Group, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self.groups = _groups(self)

    # ---- components -------------------------------------------------------------------------------------------

    @property
    def component(self) -> Ints:
        """Component of every label; 0 is frozen."""
        return self.resolved.component

    @functools.cached_property
    def channel_of(self) -> dict[int, tuple[int, int]]:
        """Component -> (index of its group, index of the channel in it)."""
        return {int(c): (g, k) for g, group in enumerate(self.groups) for k, c in enumerate(group.components)}

    def kept(self, axis: Axis, keep: Bools, size: int) -> int:
        """How many positions of an axis stay; `keep` is by component."""
        return size if axis is None else int(keep[self.component[axis]].sum())

    def keep_all(self) -> Bools:
        """A mask over components that keeps everything."""
        return np.ones(int(self.component.max()) + 1, bool)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes where the model's tensors or their channels do: a plan made for one fits no other."""
        if self.whole is not None:
            return self.whole.fingerprint
        text = repr([(n, s) for n, s in self.shapes.items()]) + repr([(g.name, len(g), g.slices) for g in self.groups])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            PlanError: where there is none.
        """
        for g in self.groups:
            if g.name == name:
                return g
        raise PlanError(f"no group is called {name!r}; see graph.groups")

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The residual branches that can be taken out whole, in order; a nested one goes with what holds it."""
        from fxprune.graph.blocks import find_blocks

        return tuple(b for b in find_blocks(self) if b.name not in self.fixed)

    def without(self, names: Sequence[str]) -> ChannelGraph:
        """The same graph with some of its blocks taken out, all else labelled as before.

        Raises:
            PlanError: where it has no such block.
        """
        from fxprune.graph.reduction import without

        if set(names) <= set(self.removed):
            return self
        known = {b.name: b for b in self.blocks}
        if unknown := [n for n in names if n not in known]:
            raise PlanError(f"this {self.model_class} has no block {unknown[0]!r}; see graph.blocks")
        return without(self, [known[n] for n in dict.fromkeys(names)])

    def holding(self, *equations: Equation) -> ChannelGraph:
        """The same graph, with the axes of some equations held as they are: the module's Python cannot follow them.

        Where these are fixed already, the attributes that an equation computes with are held.
        """
        space = copy.copy(self.space)
        space.freezes = list(self.space.freezes[: self.stated])
        for eq in equations:
            reason = Freeze("the module's Python", eq.node, f"{render(eq.expr)} cannot follow")
            axes = [eq.axis, *(self.axis_of(x) for x in leaves(eq.expr) if isinstance(x, Size))]
            if all(axis is None or not self.component[axis].any() for axis in axes) or isinstance(eq.expr, Attr):
                attributes = {x for x in leaves(eq.expr) if isinstance(x, Attr)}
                axes += [other.axis for other in self.equations if other.expr in attributes]
            for axis in axes:
                space.freeze(axis, reason)
        number = {id(eq): i for i, eq in enumerate((*self.equations, *self.literals))}
        step = " ".join(["hold", *(str(number[id(eq)]) for eq in equations)])
        return self._resolved_anew(space, len(space.freezes), self.fine, step)

    @property
    def streamed(self) -> bool:
        """Whether something finer than heads was chosen because heads are blocks of a residual stream."""
        return self.fine and any(s.streamed for s in self.space.splits)

    def coarser(self) -> ChannelGraph:
        """The same graph, with whole heads as the unit even where they are blocks of a residual stream."""
        space = copy.copy(self.space)
        space.freezes = list(self.space.freezes[: self.stated])
        return self._resolved_anew(space, self.stated, False, COARSER)

    def uncoupled(self) -> ChannelGraph:
        """The same graph without what the module's own Python needs: its plans fit the rewritten graph alone."""
        return self._resolved_anew(self.bare.copy(), len(self.bare.freezes), self.fine, UNCOUPLED)

    def revised(self, revisions: Iterable[str]) -> ChannelGraph:
        """The graph that the same steps lead to from here: `revisions` of another trace.

        Raises:
            PlanError: where a step names what this graph does not have.
        """
        graph, known = self, (*self.equations, *self.literals)
        for step in revisions:
            try:
                held = [known[int(i)] for i in step.split()[1:]]
            except (ValueError, IndexError) as e:
                raise PlanError(f"{step!r} is no step from this graph of a {self.model_class}") from e
            named = {COARSER: graph.coarser, UNCOUPLED: graph.uncoupled}
            graph = named[step]() if step in named else graph.holding(*held)
        return graph

    def _resolved_anew(self, space: LabelSpace, stated: int, fine: bool, step: str) -> ChannelGraph:
        resolved = resolve(space, self.owned, self.prefer, fine)
        revisions = (*self.revisions, step)
        out = replace(self, space=space, resolved=resolved, stated=stated, fine=fine, revisions=revisions)
        out.__dict__["blocks"] = self.blocks  # these do not hang on labels
        return out

    # ---- questions ------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        total = sum(int(np.prod(self.shapes[t])) for t in self.parameters)
        lines = [
            f"ChannelGraph of {self.model_class}: {total:,} parameters, {len(self.groups)} groups, "
            f"{sum(map(len, self.groups)):,} channels"
        ]
        lines += [f"  {g!r}" for g in self.groups[:12]]
        if len(self.groups) > 12:
            lines.append(f"  ... and {len(self.groups) - 12} more")
        return "\n".join(lines)

    def frozen(self) -> list[Held]:
        """Every tensor axis with positions that cannot be pruned, with the nearest reason."""
        nearest, stated = self._causes()
        nodes = {n.name: n for n in self.traced.graph.nodes}
        out = []
        for name, labels in self.tensors.items():
            for d, axis in enumerate(labels):
                if self.shapes[name][d] <= 1:
                    continue
                held = np.arange(0) if axis is None else axis[self.component[axis] == 0]
                if axis is not None and not len(held):
                    continue
                reason = stated.get(int(nearest[held[0]])) if len(held) else None
                reason = reason or Freeze("fixed axis", "", "no op shrinks it")
                node = nodes.get(reason.node)
                n = self.shapes[name][d] if axis is None else len(held)
                op = op_name(node.target) if node is not None and node.op == "call_function" else reason.node
                out.append(Held(name, d, n, reason.cause, reason.why, op, _source(node)))
        return out

    def _causes(self) -> tuple[Ints, dict[int, Freeze]]:
        """For every label the nearest one that was frozen for a stated reason (by breadth-first search over the edges;
        negative where there is none), and these reasons."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import dijkstra

        stated: dict[int, Freeze] = {}
        for labels, reason in reversed(self.space.freezes):
            stated.update(dict.fromkeys(labels.tolist(), reason))
        if not stated:
            return np.full(self.space.size, -1), stated
        edges = self.resolved.edges
        a = np.concatenate([e[0] for e in edges]) if edges else np.zeros(0, np.int64)
        b = np.concatenate([e[1] for e in edges]) if edges else a
        matrix = coo_matrix((np.ones(len(a), np.float32), (a, b)), shape=(self.space.size, self.space.size)).tocsr()
        _, _, nearest = dijkstra(
            matrix,
            directed=False,
            indices=np.array(sorted(stated), np.int64),
            unweighted=True,
            min_only=True,
            return_predecessors=True,
        )
        return nearest, stated

    def explain(self, name: str, axis: int = 0) -> str:
        """Why an axis of a tensor cannot be pruned, or with what it goes: the shortest path of couplings.

        Args:
            name: a parameter, a buffer or a module (then its `weight`).

        Raises:
            PlanError: where the model has no such tensor.
        """
        from fxprune.graph.explain import explain

        return explain(self, name, axis)

    def to_networkx(self) -> nx.Graph:
        """Groups and the tensors they cut, as a bipartite graph for drawing and for other tools.

        Nodes have `kind` ("group" or "tensor"); group nodes also `channels`, tensor nodes `shape`; edges have `axis`.
        """
        out = nx.MultiGraph()
        for g in self.groups:
            out.add_node(g.name, kind="group", channels=len(g), unit=g.kind)
            for s in g.slices:
                out.add_node(s.tensor, kind="tensor", shape=self.shapes[s.tensor])
                out.add_edge(g.name, s.tensor, axis=s.axis)
        return out


def _source(node: fx.Node | None) -> str:
    """The source line that a node came from, as far as the trace kept it."""
    trace = (node.meta.get("stack_trace") or "") if node is not None else ""
    lines = [x.strip() for x in trace.strip().splitlines()]
    files = [x for x in lines if x.startswith("File") and "/fxprune/" not in x]
    own = [x for x in files if "/torch/" not in x]
    return (own or files or [""])[-1]


def _label_tensors(
    traced: Traced, space: LabelSpace, named: Mapping[str, torch.Tensor]
) -> tuple[dict[fx.Node, Any], dict[str, Labels]]:
    tensors: dict[str, Labels] = {}
    env: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op != "placeholder":
            continue
        name = traced.tensors.get(node.name)
        if name is None:
            env[node] = frozen_like(node.meta.get("val"))
            continue
        if name not in tensors:
            tensors[name] = tuple(space.fresh(s) for s in named[name].shape)
        env[node] = tensors[name]
    return env, tensors


def _run_rules(traced: Traced, env: dict[fx.Node, Any], space: LabelSpace, facts: Facts) -> None:
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            continue
        op = Op(node, env, space, facts)
        rule = rule_for(node.target)
        if rule is None:
            tensors = any(isinstance(n.meta.get("val"), (torch.Tensor, tuple, list)) for n in node.all_input_nodes)
            name = op_name(node.target)
            env[node] = op.freeze_all(f"{name} has no coupling rule", "op without a rule") if tensors else None
            continue
        env[node] = rule(op)


def analyse(model: nn.Module, inputs: Inputs, prefer: tuple[str, ...] = ("heads", "head_dim")) -> ChannelGraph:
    """Capture a model and find its channels (see `fxprune.trace`)."""
    traced = capture(model, inputs)
    named = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    space, facts = LabelSpace(), Facts()
    env, tensors = _label_tensors(traced, space, named)
    _run_rules(traced, env, space, facts)
    for out in traced.outputs:
        if isinstance(out, fx.Node):
            for axis in env.get(out) or ():
                space.freeze(axis, Freeze("reaches the output", out.name, "reaches the model's output"))
    for attended in facts.attended:
        if query_rows(traced, attended.node) is None:
            why = "sets the softmax temperature, and no linear layer makes the query alone"
            space.freeze(attended.axis, Freeze("attention scale", attended.node, why))
    bare = space.copy()
    axis_of = locate(traced, env, tensors, tensor_names(model))
    calls = list(call_equations(traced, env))
    couple(space, _read_labels(space, facts, env), calls, traced.recorder.equalities, axis_of)
    numbers = list(_numbers(space, calls, traced.recorder.numbers, axis_of))
    owned = [a for labels in tensors.values() for a in labels if a is not None]
    has_tensor = np.concatenate(owned) if owned else np.zeros(0, np.int64)
    stated = len(space.freezes)
    resolved = resolve(space, has_tensor, prefer)
    equations = [eq for call in calls for eq in call if not isinstance(eq.expr, int)]
    literals = [*numbers, *(eq for call in calls for eq in call if isinstance(eq.expr, int))]
    for a, b in traced.recorder.equalities:
        equations += _equality_equations(a, b, axis_of)
    return ChannelGraph(
        traced=traced,
        model_class=type(model).__name__,
        env=env,
        tensors=tensors,
        shapes={n: tuple(named[n].shape) for n in tensors},
        parameters=frozenset(n for n, _ in model.named_parameters() if n in tensors),
        space=space,
        facts=facts,
        resolved=resolved,
        equations=tuple(equations),
        literals=tuple(literals),
        axis_of=axis_of,
        bare=bare,
        prefer=prefer,
        owned=has_tensor,
        stated=stated,
        outside=sum(p.numel() for n, p in model.named_parameters() if n not in tensors),
        within={n: found for n, found in lineage(model).items() if n in tensors},
    )


def _read_labels(space: LabelSpace, facts: Facts, env: Mapping[fx.Node, Any]) -> Bools:
    """Which labels stand on an axis that some op contracts over."""
    out = np.zeros(space.size, bool)
    for pairs in facts.reads.values():
        for node, axis in pairs:
            out[env[node][axis]] = True
    return out


def _numbers(
    space: LabelSpace, calls: list[list[Equation]], numbers: list[Expr], axis_of: AxisOf
) -> Iterator[Equation]:
    """Hold what the model's Python computes with as a number: with less head_dim 1/sqrt(head_dim) is another one.

    A factor of a split is held at once, since another factor may live instead.  Other axes that a number comes from (it
    need not reach a value) are given back as literals, to be held if the proof fails.
    """
    for expr in dict.fromkeys(numbers):
        for leaf in leaves(expr):
            axes = [axis_of(leaf)] if isinstance(leaf, Size) else [q.axis for c in calls for q in c if q.expr == leaf]
            for axis in axes:
                if axis is None:
                    continue
                if leaf == expr and is_factor(space, axis):
                    space.freeze(axis, Freeze("used as a number", "", f"{render(expr)} is used as a number"))
                else:
                    yield Equation(len(axis), axis, len(axis), "")


def _equality_equations(a: Any, b: Any, axis_of: AxisOf) -> Iterator[Equation]:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Attr) and isinstance(y, Size):
            yield Equation(x, axis_of(y), x.old, "a comparison")


def _occurrences(graph: ChannelGraph) -> Iterator[tuple[str, int, Ints]]:
    """(tensor, axis, labels) of all tensors, then of all activations under the name "@node"."""
    for name, labels in graph.tensors.items():
        for d, axis in enumerate(labels):
            if axis is not None:
                yield name, d, axis
    for node, value in graph.env.items():
        if node.op == "placeholder":
            continue
        for k, labels in enumerate(value if isinstance(value, list) else [value]):
            for d, axis in enumerate(labels or ()):
                if axis is not None:
                    yield f"@{node.name}.{k}", d, axis


def _groups(graph: ChannelGraph) -> tuple[Group, ...]:
    """Components with a parameter position, grouped by the axes (of tensors and activations) that they occupy.

    Channels of one group play the same part everywhere, so they may be permuted among themselves.
    """
    component = graph.component
    rows = list(_occurrences(graph))
    if not rows:
        return ()
    rng = np.random.default_rng(0)
    n = int(component.max()) + 1
    keys = rng.integers(1, 2**64, size=len(rows), dtype=np.uint64)  # a set of rows is known by its keys' sum
    signature = np.zeros(n, np.uint64)
    owned, made, buffered = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool)
    first = np.full(n, np.iinfo(np.int64).max)
    base = 0
    for (name, d, axis), key in zip(rows, keys, strict=True):
        c = component[axis]
        np.add.at(signature, c, key)
        if name in graph.parameters:
            owned[c] = True
            made[c] |= d == 0
        elif name in graph.tensors:
            buffered[c] = True
        np.minimum.at(first, c, base + np.arange(len(c)))
        base += len(c)
    owned &= made | ~buffered  # what only a buffer makes is an input of the model in all but name
    owned &= _read_components(graph, n)  # what is cut off unread (a table's tail) may be read for other inputs
    owned[0] = False
    members = np.flatnonzero(owned)
    members = members[np.argsort(first[members], kind="stable")]
    _, inverse = np.unique(signature[members], return_inverse=True)
    order: dict[int, list[int]] = {}
    for c, g in zip(members.tolist(), inverse.tolist(), strict=True):
        order.setdefault(g, []).append(c)
    where = np.full(n, -1)
    index_in = np.zeros(n, np.int64)
    for g, comps in enumerate(order.values()):
        where[comps] = g
        index_in[comps] = np.arange(len(comps))
    slices: list[list[Slice]] = [[] for _ in order]
    sizes = [len(comps) for comps in order.values()]
    for name, d, axis in rows:
        if name.startswith("@"):
            continue
        c = component[axis]
        for g in _distinct(where[c]):
            if g >= 0:
                at = np.flatnonzero(where[c] == g)
                slices[g].append(Slice(name, d, _in_order(at, index_in[c[at]]).reshape(sizes[g], -1)))
    heads = _of_kind(graph, "heads")
    names: dict[str, int] = {}
    groups = []
    for comps, cut in zip(order.values(), slices, strict=True):
        # the first axis that only this group writes names it; parameters before buffers
        lead = next((s for s in cut if s.axis == 0 and s.tensor in graph.parameters), cut[0])
        name = f"{lead.tensor}:{lead.axis}"
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        kind = "heads" if heads[comps].all() else "channels"
        groups.append(Group(name, np.array(comps, np.int64), tuple(cut), kind))
    return tuple(groups)


def _distinct(values: Ints) -> list[int]:
    """The distinct values, ascending; an axis nearly always has one."""
    return [int(values[0])] if (values == values[0]).all() else [int(v) for v in np.unique(values)]


def _in_order(positions: Ints, index: Ints) -> Ints:
    """Positions by ascending index, which is nearly always the order that they are in."""
    return positions if (index[1:] >= index[:-1]).all() else positions[np.argsort(index, kind="stable")]


def _read_components(graph: ChannelGraph, n: int) -> Bools:
    """Which components some op contracts over: every channel that has a part in an output is read so somewhere."""
    out = np.zeros(n, bool)
    for pairs in graph.facts.reads.values():
        for node, axis in pairs:
            out[graph.component[graph.env[node][axis]]] = True
    return out


def _of_kind(graph: ChannelGraph, kind: str) -> Bools:
    out = np.zeros(int(graph.component.max()) + 1, bool)
    for axis, k in graph.space.hints:
        if k == kind:
            out[graph.component[axis]] = True
    out[0] = False
    return out
