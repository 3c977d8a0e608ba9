"""Residual branches of a traced graph: what is added to a stream, and can be left out.

    y = x + f(x, ...)        the branch is all that reaches the outputs through this addition only

It is a block if it starts at the stream (`x` itself, or what `x`'s side of the addition was made of: a shortcut may
hold a convolution), if nothing else reads its inside, and if its weights belong to modules that can be taken out.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

from torch import fx

from fxprune.graph.rules.op import is_tensor, op_name, shape_of
from fxprune.graph.trace import Traced

Nodes: TypeAlias = "frozenset[fx.Node]"
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Block:
    """A residual branch that can go whole.

    Attributes:
        name: path of the module that adds it; where that adds several, of the branch's last module with a matrix.
        node: the addition; `stream` and `branch` are the nodes of its operands.
        tensors: parameters and buffers that go with it.
        modules: paths of the modules that go with it.
    """

    name: str
    node: str
    stream: str
    branch: str
    tensors: tuple[str, ...]
    modules: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.name}: {len(self.tensors)} tensors in {', '.join(self.modules[:3])}"


@dataclass(frozen=True)
class Cut:
    """A graph without some additions: `instead` says what stands for a value that is not computed any more."""

    instead: Mapping[fx.Node, fx.Node]
    live: Nodes

    def resolve(self, node: fx.Node) -> fx.Node:
        """The node that gives the value of `node`."""
        while node in self.instead:
            node = self.instead[node]
        return node


def cut(traced: Traced, streams: Mapping[fx.Node, fx.Node]) -> Cut:
    """What is still computed once each addition gives its stream.  A scaling by one after it goes, too, and so do casts
    to the type that a value has: Python goes on with the value itself, and the module that casts it did nothing."""
    instead = _casts(traced) | _identities(streams)
    found = Cut(instead, frozenset())
    live = {found.resolve(o) for o in traced.outputs if isinstance(o, fx.Node)}
    for node in reversed(traced.graph.nodes):
        if node not in instead and (node in live or (_writes(node) and not node.users)):
            live.add(node)
            live.update(found.resolve(n) for n in node.all_input_nodes)
    return Cut(instead, frozenset(live))


def _identities(streams: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Additions and the scalings by one that follow them, by what stands for them."""
    instead, stack = dict(streams), list(streams)
    while stack:
        node = stack.pop()
        fresh = [u for u in node.users if u not in instead and _times_one(u) and u.args[0] is node]
        instead.update((u, node) for u in fresh)
        stack += fresh
    return instead


def _casts(traced: Traced) -> dict[fx.Node, fx.Node]:
    """Casts that change nothing, by what they are called with."""
    found = (n for n in traced.graph.nodes if n.op == "call_function" and op_name(n.target) == "aten::to")
    return {n: a for n in found if isinstance(a := n.args[0], fx.Node) and n not in traced.outputs and _same(n, a)}


def _same(node: fx.Node, argument: fx.Node) -> bool:
    """Whether a cast gives what it is called with."""
    place = getattr(node.meta["val"], "device", None), getattr(argument.meta["val"], "device", None)
    return "copy" not in node.kwargs and place[0] == place[1] and _alike(node, argument)


def _writes(node: fx.Node) -> bool:
    """Whether an op changes its first argument."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _times_one(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and op_name(node.target) in ("aten::mul", "aten::div")
        and len(node.args) == 2
        and isinstance(node.args[0], fx.Node)
        and not isinstance(node.args[1], fx.Node)
        and bool(node.args[1] == 1)
        and _alike(node, node.args[0])
    )


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values have one shape and type."""
    return shape_of(a) == shape_of(b) and bool(a.meta["val"].dtype == b.meta["val"].dtype)


# ---- finding ------------------------------------------------------------------------------------------------------


def find_blocks(traced: Traced, shapes: Shapes, parameters: frozenset[str]) -> tuple[Block, ...]:
    """Every residual branch that can go, in the order of the graph.  Nested ones are blocks of their own."""
    finder = _Finder(traced, shapes, parameters)
    found = [b for node in traced.graph.nodes if (b := finder.at(node)) is not None]
    hosts = Counter(b.name for b in found)
    names: Counter[str] = Counter()
    out = []
    for block in found:
        name = block.name if block.name and hosts[block.name] == 1 else finder.main(block)
        names[name] += 1
        out.append(replace(block, name=name if names[name] == 1 else f"{name}#{names[name]}"))
    return tuple(out)


def inside(name: str, module: str) -> bool:
    """Whether a tensor or module is (in) that module."""
    return name == module or name.startswith(f"{module}.")


class _Finder:
    def __init__(self, traced: Traced, shapes: Shapes, parameters: frozenset[str]) -> None:
        self.traced, self.shapes, self.parameters = traced, shapes, parameters
        self.nodes = list(self.traced.graph.nodes)
        self.order = {n: i for i, n in enumerate(self.nodes)}
        self.whole = cut(self.traced, {})
        self.data: set[fx.Node] = set()
        for node in self.nodes:
            if node.name in self.traced.inputs or any(n in self.data for n in node.all_input_nodes):
                self.data.add(node)

    def numel(self, tensor: str) -> int:
        """Elements of a parameter; 0 for a buffer."""
        return math.prod(self.shapes[tensor]) if tensor in self.parameters else 0

    def is_matrix(self, tensor: str) -> bool:
        """Whether it is a parameter of two axes at least."""
        return len(self.shapes[tensor]) > 1 and tensor in self.parameters

    def main(self, block: Block) -> str:
        """The last module of those that go which holds a matrix."""
        nodes = reversed(self.nodes)
        read = (self.traced.tensors.get(n.name, "") for node in nodes for n in node.all_input_nodes)
        last = next(t for t in read if t in block.tensors and self.is_matrix(t))
        return next(m for m in block.modules if inside(last, m))

    def at(self, node: fx.Node) -> Block | None:
        """The block that a node adds to a stream: the heavier operand where either could be it."""
        if node not in self.whole.live:
            return None
        sides = [b for stream, branch in _operands(node) if (b := self._side(node, stream, branch)) is not None]
        return max(sides, key=lambda b: sum(map(self.numel, b.tensors)), default=None)

    def _side(self, node: fx.Node, stream: fx.Node, branch: fx.Node) -> Block | None:
        region = self._region(node, stream)
        entries = {n for m in region for n in m.all_input_nodes if n not in region and n in self.data}
        if not self._starts_at(entries, stream) or entries & _summands(branch):
            return None  # it starts elsewhere, or holds the stream itself
        if any(_writes(n) and n.args[0] not in region for n in region):
            return None
        instead = {**self.whole.instead, **_identities({node: stream})}
        after = Cut(instead, self.whole.live - region - instead.keys())
        modules = taken_out(self.traced, self.whole, after)
        tensors = gone(self.traced, after, modules)
        if not any(map(self.is_matrix, tensors)):
            return None
        return Block(node.meta["fxprune_module"], node.name, stream.name, branch.name, tensors, modules)

    def _region(self, node: fx.Node, stream: fx.Node) -> set[fx.Node]:
        """What reaches the outputs through the other operand of `node` only."""
        out: set[fx.Node] = set()
        heap = [-self.order[n] for n in node.all_input_nodes if n is not stream]
        while heap:  # the last one first: its users are settled
            n = self.nodes[-heapq.heappop(heap)]
            if n in out or n is stream or n.name in self.traced.inputs:
                continue
            if all(u is node or u in out or u not in self.whole.live for u in n.users):
                out.add(n)
                for m in n.all_input_nodes:
                    heapq.heappush(heap, -self.order[m])
        return out

    def _starts_at(self, entries: set[fx.Node], stream: fx.Node) -> bool:
        """Whether an input of the branch is made of the stream (or of what it is the sum of) alone, or the other way
        round: a shortcut may hold a convolution, a norm may stand before two branches."""
        parts = _summands(stream)
        if any(self._origins(n, parts) for n in entries):
            return True
        return any(n.op != "placeholder" for n in self._origins(stream, entries))

    def _origins(self, node: fx.Node, among: set[fx.Node]) -> set[fx.Node]:
        """Which of some values a value is made of; none where it is made of other data, too."""
        stack, seen = [node], {node}
        while stack:
            n = stack.pop()
            if n in among:
                continue
            if n.op == "placeholder":
                return set()
            fresh = [m for m in n.all_input_nodes if m in self.data and m not in seen]
            seen.update(fresh)
            stack += fresh
        return seen & among


def _operands(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(stream, branch) of a sum, either way round; the stream has the shape of the sum."""
    if node.op != "call_function" or op_name(node.target) != "aten::add" or "alpha" in node.kwargs:
        return
    a, b = node.args[:2]
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and is_tensor(a) and is_tensor(b) and a is not b:
        yield from ((s, o) for s, o in ((a, b), (b, a)) if _alike(s, node))


def _summands(node: fx.Node) -> set[fx.Node]:
    """A value and, where it is a sum, what it is the sum of."""
    out, stack = {node}, [node]
    while stack:
        fresh = {s for s, _ in _operands(stack.pop())} - out
        out |= fresh
        stack += fresh
    return out


# ---- modules ------------------------------------------------------------------------------------------------------


@functools.cache
def _prefixes(path: str) -> tuple[str, ...]:
    return tuple(accumulate(path.split("."), lambda a, b: f"{a}.{b}"))


@functools.cache
def _within(paths: tuple[str, ...]) -> frozenset[str]:
    """Modules and all that hold them."""
    return frozenset(p for path in paths for p in _prefixes(path))


def taken_out(traced: Traced, before: Cut, after: Cut) -> tuple[str, ...]:
    """The outermost modules that were at work before, and have nothing left to do after."""
    idle: set[str] = {p for n in before.live - after.live for p in n.meta.get("fxprune_calls", ())} - {""}
    for node in after.live:
        idle -= _within(node.meta.get("fxprune_calls", ()))
        if node.name in traced.tensors:
            idle.difference_update(_prefixes(traced.tensors[node.name]))
    return tuple(sorted(m for m in idle if not any(p in idle for p in _prefixes(m) if p != m)))


def gone(traced: Traced, after: Cut, modules: Iterable[str]) -> tuple[str, ...]:
    """Tensors that go with some modules: nothing that is left reads them."""
    left = {traced.tensors[n.name] for n in after.live if n.name in traced.tensors}
    taken = set(modules)
    return tuple(t for t in dict.fromkeys(traced.tensors.values()) if t not in left and taken & {*_prefixes(t)})


def cut_of(traced: Traced, blocks: Iterable[Block]) -> Cut:
    """What is still computed without some blocks."""
    nodes = {n.name: n for n in traced.graph.nodes}
    return cut(traced, {nodes[b.node]: nodes[b.stream] for b in blocks})


def modules_of(traced: Traced, blocks: Iterable[Block]) -> tuple[str, ...]:
    """The outermost modules that have nothing to do without some blocks."""
    return taken_out(traced, cut(traced, {}), cut_of(traced, blocks))
