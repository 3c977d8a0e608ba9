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
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import numpy as np
from torch import Tensor, fx

from fxprune.arguments import INTEGER, SEVERAL, TEXT, takes
from fxprune.errors import PlanError
from fxprune.graph.blocks import Block, cut_of, find_blocks, gone, modules_of
from fxprune.graph.equations import AxisOf, Equation, render
from fxprune.graph.explain import meant, nearest_reasons, way_to_frozen
from fxprune.graph.groups import Group, Held, Labelled, groups_of
from fxprune.graph.labels import Axis, Bools, Freeze, Ints, LabelSpace, Resolved, resolve
from fxprune.graph.makers import made_axes, makers_of
from fxprune.graph.provenance import Attr, Size, leaves
from fxprune.graph.reduction import reduced_equations, reduced_facts, reduced_trace
from fxprune.graph.rules.op import Facts, Labels, op_name
from fxprune.graph.trace import Traced, mode_of
from fxprune.notebook import shown

COARSER, UNCOUPLED, FOLLOWING, KEEP = "coarser", "uncoupled", "following", "keep"
FAILS = "fails the proof"


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
        training: the trace in train mode, where the model computes something else there; it shares labels and facts.
        unseen: why the train mode could not be looked at, if it could not.
        unread: parameters that no trace has read; they stay whole.
        revisions: how `holding`, `keeping`, `coarser`, `uncoupled` and `following` made this graph from the traced one.
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
    training: Traced | None = None
    unseen: str = ""
    unread: tuple[str, ...] = ()
    revisions: tuple[str, ...] = ()
    groups: tuple[Group, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        reads, hints = self.facts.reads, self.space.hints
        reduced = [r.axis for r in self.facts.reduced]
        self.groups = groups_of(
            Labelled(self.component, self.tensors, self.env, self.parameters, reads, hints, reduced)
        )

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
    def modes(self) -> tuple[ChannelGraph, ...]:
        """This graph, and the same in train mode where the model computes something else there."""
        if self.training is None:
            return (self,)
        view = copy.copy(self)
        view.traced, view.training = self.training, None
        for cached in ("blocks", "modes"):
            view.__dict__.pop(cached, None)
        return (self, view)

    def mode_of(self, node: str) -> Traced:
        """The trace, in eval or in train mode, that a node is of."""
        return mode_of(node, self.traced, self.training)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes where the model's tensors or their channels do: a plan made for one fits no other."""
        if self.whole is not None:
            return self.whole.fingerprint
        text = repr([(n, s) for n, s in self.shapes.items()]) + repr([(g.name, len(g), g.slices) for g in self.groups])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.cached_property
    def makers(self) -> dict[str, tuple[str, ...]]:
        """Group -> the names of the tensors that make its channels, those that only read them left out."""
        made = made_axes(self.traced, self.env, self.facts, self.tensors, self.space.size)
        return makers_of(self.groups, self.within, made)

    @takes(name=TEXT.raising(PlanError))
    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            PlanError: where there is none.
        """
        for g in self.groups:
            if g.name == name:
                return g
        raise PlanError(f"no group is called {name!r}; see graph.groups{meant(name, [g.name for g in self.groups])}")

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The residual branches that can be taken out whole, in order; a nested one goes with what holds it."""
        found = find_blocks(self.traced, self.shapes, self.parameters)
        for view in self.modes[1:]:
            also = {(b.name, b.modules) for b in view.blocks}
            found = tuple(b for b in found if (b.name, b.modules) in also)
        return tuple(b for b in found if b.name not in self.fixed)

    @takes(names=SEVERAL)
    def without(self, names: Sequence[str]) -> ChannelGraph:
        """The same graph with some of its blocks taken out, all else labelled as before.

        Raises:
            PlanError: where it has no such block.
        """
        if set(names) <= set(self.removed):
            return self
        known = {b.name: b for b in self.blocks}
        if unknown := [n for n in names if n not in known]:
            raise PlanError(
                f"this {self.model_class} has no block {unknown[0]!r}; see graph.blocks{meant(unknown[0], known)}"
            )
        return self._reduced([known[n] for n in dict.fromkeys(names)])

    def _reduced(self, blocks: Sequence[Block]) -> ChannelGraph:
        """What is left without some blocks; every label keeps its component."""
        after = cut_of(self.traced, blocks)
        modules = modules_of(self.traced, blocks)
        lost = set(gone(self.traced, after, modules))
        traced, new = reduced_trace(self.traced, after)
        kept, trained, cuts = [traced], None, [after]
        for view in self.modes[1:]:
            names = {b.name for b in blocks}
            cuts.append(cut_of(view.traced, [b for b in view.blocks if b.name in names]))
            trained, also = reduced_trace(view.traced, cuts[-1])
            kept, new = [traced, trained], new | also
        read = {name for mode in kept for name in mode.tensors.values()}
        left = [n for n in self.parameters if n not in read and n not in lost]
        return replace(
            self,
            traced=traced,
            training=trained,
            env={new[n]: v for n, v in self.env.items() if n in new},
            tensors={n: v for n, v in self.tensors.items() if n in read},
            shapes={n: v for n, v in self.shapes.items() if n in read},
            parameters=self.parameters & read,
            facts=reduced_facts(self.facts, new, cuts),
            equations=reduced_equations(self.equations, kept, modules),
            literals=reduced_equations(self.literals, kept, modules),
            outside=self.outside + sum(math.prod(self.shapes[n]) for n in left),
            whole=self,
            removed=tuple(b.name for b in blocks),
        )

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

    def keeping(self, names: Iterable[str], why: str) -> ChannelGraph:
        """The same graph, with all channels of some groups held as they are, for a reason (a class of reasons)."""
        space = copy.copy(self.space)
        space.freezes = list(self.space.freezes[: self.stated])
        which = [i for i, g in enumerate(self.groups) if g.name in set(names)]
        for i in which:
            for s in self.groups[i].slices:
                axis = self.tensors[s.tensor][s.axis]
                if axis is not None:
                    space.freeze(axis[s.positions.reshape(-1)], Freeze(why, "", f"goes with {self.groups[i].name}"))
        step = " ".join([KEEP, *map(str, which)])
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

    def following(self) -> ChannelGraph:
        """The same graph, where numbers that the module's Python makes from a width, and that no weight can undo, are
        those of what stays: as the mean of a norm is, they are part of what a mask changes."""
        out = replace(self, revisions=(*self.revisions, FOLLOWING))
        out.__dict__["blocks"] = self.blocks
        return out

    @property
    def follows(self) -> bool:
        """Whether `following` made this graph."""
        return FOLLOWING in self.revisions

    @takes(revisions=SEVERAL)
    def revised(self, revisions: Iterable[str]) -> ChannelGraph:
        """The graph that the same steps lead to from here: `revisions` of another trace.

        Raises:
            PlanError: where a step names what this graph does not have.
        """
        graph, known = self, (*self.equations, *self.literals)
        for step in revisions:
            keep = step.startswith(f"{KEEP} ")
            try:
                numbers = [int(i) for i in step.split()[1:]]
                names = [graph.groups[i].name for i in numbers] if keep else []
                held = [] if keep else [known[i] for i in numbers]
            except (ValueError, IndexError) as e:
                raise PlanError(f"{step!r} is no step from this graph of a {self.model_class}") from e
            named = {COARSER: graph.coarser, UNCOUPLED: graph.uncoupled, FOLLOWING: graph.following}
            if keep:
                graph = graph.keeping(names, FAILS)
            else:
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

    def _repr_html_(self) -> str:
        rows = [(g.name, g.kind, len(g), len({s.tensor for s in g.slices})) for g in self.groups]
        return shown(repr(self).splitlines()[0], ["group", "unit", "channels", "tensors"], rows)

    def frozen(self) -> list[Held]:
        """Every tensor axis with positions that cannot be pruned, with the nearest reason."""
        nearest, stated = nearest_reasons(self.space.size, self.resolved.edges, self.space.freezes)
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
                out.append(Held(name, d, n, reason.cause, reason.why, op, source_of(node)))
        return out

    @takes(name=TEXT.raising(PlanError), axis=INTEGER.raising(PlanError))
    def explain(self, name: str, axis: int = 0) -> str:
        """Why an axis of a tensor cannot be pruned, or with what it goes: the shortest path of couplings.

        Args:
            name: a parameter, a buffer, a group (the tensor that it is called after) or a module (its `weight`, or a
                line for each tensor in it).

        Raises:
            PlanError: where the model has no such tensor or module.
        """
        tensors = self._tensors(name)
        if len(tensors) > 1:
            return "\n".join(self.explain(t, axis) for t in tensors if axis < len(self.shapes[t]))
        tensor = tensors[0]
        if not -len(self.shapes[tensor]) <= axis < len(self.shapes[tensor]):
            raise PlanError(f"{tensor} has {len(self.shapes[tensor])} axes, axis {axis} is asked for")
        labels = self.tensors[tensor][axis]
        head = f"{tensor} axis {axis} ({self.shapes[tensor][axis]} positions)"
        if labels is None:
            return f"{head}: has size one, it cannot shrink"
        frozen = self.component[labels] == 0
        parts = [] if frozen.all() else [self._groups_at(labels)]
        if frozen.any():
            way = way_to_frozen(self.space.size, self.resolved.edges, self.space.freezes, int(labels[frozen][0]))
            parts.append(f"frozen ({int(frozen.sum())} positions): {way}")
        return f"{head}: " + "; ".join(parts)

    def tensor(self, name: str) -> str:
        """The one tensor that a name of a tensor, module or group means.

        Raises:
            PlanError: none, or several.
        """
        found = self._tensors(name)
        if len(found) > 1:
            told = ", ".join(map(repr, found[:4]))
            raise PlanError(
                f"name={name!r} is a module of {len(found)} tensors; name one: {told}{', ...' * (len(found) > 4)}"
            )
        return found[0]

    def _tensors(self, name: str) -> list[str]:
        """The tensors that a name of a tensor, module or group means."""
        called, _, axis = name.rpartition(":")
        if axis.partition("#")[0].isdigit() and any(g.name == name for g in self.groups):
            name = called
        canonical = {n: t for t, found in self.within.items() for n, kind in found.items() if kind is Tensor}
        for tensor in (name, f"{name}.weight"):
            if (found := canonical.get(tensor, tensor)) in self.tensors:
                return [found]
        within = [t for t, places in self.within.items() if name in places]
        read = [t for t in within if t in self.tensors]
        if read:
            return read
        if within:
            raise PlanError(f"the traced forward of this {self.model_class} does not use {name!r}")
        known = {place for t in self.tensors for place in (t, *self.within.get(t, ()))}
        raise PlanError(
            f"this {self.model_class} has no tensor {name!r}; names are those of model.named_parameters()"
            f"{meant(name, known)}"
        )

    def _groups_at(self, labels: Ints) -> str:
        """The groups that some labels are of, as text."""
        found = dict.fromkeys(self.channel_of[c][0] for c in self.component[labels].tolist() if c in self.channel_of)
        if not found:
            return "free, but no parameter goes with it"
        return "prunable in " + ", ".join(f"{self.groups[g]!r}" for g in list(found)[:3])

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


def source_of(node: fx.Node | None) -> str:
    """The source line that a node came from, as far as the trace kept it."""
    trace = (node.meta.get("stack_trace") or "") if node is not None else ""
    lines = [x.strip() for x in trace.strip().splitlines()]
    files = [x for x in lines if x.startswith("File") and "/fxprune/" not in x]
    own = [x for x in files if "/torch/" not in x]
    return (own or files or [""])[-1]
