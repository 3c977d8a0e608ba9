"""A graph rewritten for the components that stay, ready to run: every shape constant follows from the labels.

Sizes that the model's Python had read from a tensor (a batch, a sequence length) are read again at run time, so other
batch sizes work as far as the graph itself allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.equations import origin_of
from fxprune.graph.labels import Bools
from fxprune.graph.packing import packed
from fxprune.graph.provenance import Expr, Size, leaves
from fxprune.graph.regions import computed
from fxprune.graph.rules.op import op_name, shape_of
from fxprune.graph.rules.pieces import SPLITS, split_axis
from fxprune.graph.sizes import Shapes, Sized, put, shape_now, sized
from fxprune.graph.trace import last_uses

Env: TypeAlias = Mapping[fx.Node, Any]
_SHAPED = {
    f"aten::{n}": 1
    for n in ["view", "reshape", "_unsafe_view", "expand", "new_zeros", "new_ones", "new_full", "new_empty"]
}
_SHAPED |= {f"aten::{n}": 0 for n in ["zeros", "ones", "full", "empty", "rand", "randn"]}


@dataclass(frozen=True)
class Rewriter:
    """Recomputes the constants of nodes from the labels that stay."""

    graph: ChannelGraph
    keep: Bools
    groups: Mapping[str, int]

    def size(self, node: fx.Node, d: int, old: int) -> int:
        labels = self.graph.env.get(node)
        return old if not isinstance(labels, tuple) else self.graph.kept(labels[d], self.keep, old)

    def arguments(self, node: fx.Node) -> list[Any]:
        """The node's positional arguments after pruning."""
        args: list[Any] = list(node.args)
        name = op_name(node.target)
        if name in _SHAPED:
            at = _SHAPED[name]
            args[at] = [
                s if isinstance(s, fx.Node) or s == -1 else self.size(node, d, s) for d, s in enumerate(args[at])
            ]
        elif name == "aten::unflatten":
            start = args[1] % len(shape_of(args[0]))
            args[2] = [s if s == -1 else self.size(node, start + d, s) for d, s in enumerate(args[2])]
        elif name in ("aten::layer_norm", "aten::rms_norm"):
            first = len(shape_of(node)) - len(args[1])
            args[1] = [self.size(node, first + d, s) for d, s in enumerate(args[1])]
        elif name == "aten::group_norm":
            args[1] = self.groups.get(node.name, args[1])
        elif name == "aten::slice":
            args = self._slice(node, args)
        elif name == "aten::narrow":
            args = self._narrow(node, args)
        elif name in ("aten::repeat", "aten::tile"):
            args[1] = self._repeats(node, args[1])
        elif name == "aten::repeat_interleave" and isinstance(args[1], int) and len(args) > 2 and args[2] is not None:
            d = int(args[2]) % len(shape_of(node))
            args[1] = self.size(node, d, args[1]) if shape_of(args[0])[d] == 1 else args[1]
        elif node.name in self.groups and (at := position_of(node, "groups")) < len(args):
            args[at] = self.groups[node.name]
        return args

    def _slice(self, node: fx.Node, args: list[Any]) -> list[Any]:
        dim = args[1] if len(args) > 1 else 0
        axis = self.graph.env[args[0]][dim]
        if axis is None:
            return args
        n, step = len(axis), args[4] if len(args) > 4 else 1
        if isinstance(step, int) and step > 1 and isinstance(args[2], int):  # whole runs of `step` go
            first = range(n)[args[2] :].start
            before = int(self.keep[self.graph.component[axis[: first - first % step]]].sum())
            picked = self.size(node, dim, shape_of(node)[dim])
            return [*args[:2], before + first % step, before + first % step + step * (picked - 1) + 1, step, *args[5:]]

        def moved(border: Any) -> Any:
            if not isinstance(border, int) or border >= n:
                return border
            return int(self.keep[self.graph.component[axis[: border % n if border < 0 else border]]].sum())

        return [*args[:2], *(moved(b) for b in args[2:4]), *args[4:]]

    def _narrow(self, node: fx.Node, args: list[Any]) -> list[Any]:
        axis = self.graph.env[args[0]][args[1]]
        if axis is None or not isinstance(args[2], int) or not isinstance(args[3], int):
            return args
        before = axis[: args[2] % len(axis)]
        start = int(self.keep[self.graph.component[before]].sum())
        return [*args[:2], start, self.size(node, args[1], args[3]), *args[4:]]

    def _repeats(self, node: fx.Node, times: Sequence[Any]) -> list[Any]:
        """How often each axis is repeated: one of size one makes new positions, of which some may go."""
        shape = shape_of(node.args[0])
        rank = len(shape_of(node))
        ahead, given = (1,) * (rank - len(shape)), len(times)
        sizes = (ahead + shape)[rank - given :]
        new = [self.size(node, rank - given + i, t) if isinstance(t, int) else t for i, t in enumerate(times)]
        return [n if s == 1 else t for n, s, t in zip(new, sizes, times, strict=True)]

    def read(self, expr: Expr) -> Iterator[tuple[Size, tuple[fx.Node, int]]]:
        """The sizes that an expression reads: from which node, and how large they are there after pruning."""
        for x in leaves(expr):
            if isinstance(x, Size):
                node = origin_of(self.graph.traced, x)
                assert node is not None
                yield x, (node, self.size(node, x.axis, x.old))

    def pieces(self, node: fx.Node) -> list[int] | None:
        """Lengths of the pieces of a split or chunk, if they change."""
        if op_name(node.target) not in SPLITS:
            return None
        labels = self.graph.env[node]
        dim = split_axis(node)
        sizes = [int(v.shape[dim]) for v in node.meta["val"]]
        kept = [self.graph.kept(piece[dim], self.keep, s) for piece, s in zip(labels, sizes, strict=True)]
        return None if kept == sizes else kept


@dataclass(frozen=True)
class Program:
    """The rewritten graph: steps in order, ready to run on a model's tensors."""

    nodes: tuple[fx.Node, ...]
    arguments: Mapping[fx.Node, list[Any]]
    pieces: Mapping[fx.Node, list[int]]
    last: Mapping[fx.Node, tuple[fx.Node, ...]]
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    sized: Mapping[fx.Node, list[Sized]]
    shapes: Shapes
    outputs: tuple[Any, ...]
    in_spec: Any
    out_spec: Any

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tell: Callable[[fx.Node, Any], None] | None = None,
    ) -> Any:
        """What the model gives; `tell` is told every value on the way."""
        flat, spec = pytree.tree_flatten(packed((args, kwargs)))
        if len(flat) != len(self.inputs):
            raise InputsError(
                f"this pruned {type(model).__name__} runs its traced graph, which takes {len(self.inputs)} inputs "
                f"in the structure {self.in_spec}, not {spec}"
            )
        given = dict(zip(self.inputs, flat, strict=True))
        state = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        env: dict[fx.Node, Any] = {}
        seen: dict[fx.Node, tuple[int, ...]] = {}
        read = self.shapes.read()
        for node in self.nodes:
            env[node] = self.step(node, env, given, state, seen)
            if tell is not None:
                tell(node, env[node])
            if node in read:
                seen[node] = shape_now(env[node])
            for n in self.last.get(node, ()):
                env.pop(n, None)
        out = [env[o] if isinstance(o, fx.Node) else o for o in self.outputs]
        return pytree.tree_unflatten(out, self.out_spec)

    def step(
        self,
        node: fx.Node,
        env: Env,
        given: Mapping[str, Any],
        state: Mapping[str, Tensor],
        seen: Mapping[fx.Node, tuple[int, ...]] | None = None,
    ) -> Any:
        """The value of one node: `env` holds those before it, `seen` the shapes that sizes follow (None: as traced)."""
        if node.op == "placeholder":
            if node.name in self.tensors:
                return state[self.tensors[node.name]]
            return self.constants.get(node.name, given.get(node.name))
        look: Callable[[Any], Any] = lambda a: fx.node.map_arg(a, lambda n: env[n])  # noqa: E731
        args, kwargs = list(look(self.arguments[node])), dict(look(node.kwargs))
        if node in self.pieces:
            return list(torch.split(args[0], self.pieces[node], split_axis(node)))
        if op_name(node.target) == "aten::repeat_interleave":
            kwargs.pop("output_size", None)  # a hint, true for the traced batch only
        if seen is not None:
            for number in self.sized.get(node, ()):
                k, j = number.path
                put(args, number.path, self.shapes.now(number, args[k] if j is None else args[k][j], seen))
        if op_name(node.target) in ("aten::view", "aten::reshape", "aten::_unsafe_view"):
            args[1] = _filling(args[0].numel(), args[1])
        return computed(node, args, kwargs)


def _filling(numel: int, sizes: Sequence[int]) -> Sequence[int]:
    """The sizes of a view; where they hold another number of elements, the first one, the batch, gives way."""
    rest = math.prod(sizes[1:])
    return sizes if not sizes or -1 in sizes or rest == 0 or rest * sizes[0] == numel else [numel // rest, *sizes[1:]]


def program_of(graph: ChannelGraph, keep: Bools, groups: Mapping[str, int]) -> Program:
    """The graph rewritten for the components that stay.

    Args:
        groups: new numbers of groups of group norms and grouped convolutions, by node.
    """
    traced = graph.traced
    rewriter = Rewriter(graph, keep, groups)
    calls = [n for n in traced.graph.nodes if n.op == "call_function"]
    spec = pytree.tree_structure(traced.example)
    pieces = {n: p for n in calls if (p := rewriter.pieces(n)) is not None}
    numbers = sized(traced)
    return Program(
        nodes=tuple(traced.graph.nodes),
        arguments={n: rewriter.arguments(n) for n in calls},
        pieces=pieces,
        last=last_uses(traced.graph, traced.outputs),
        tensors=traced.tensors,
        constants=traced.constants,
        inputs=traced.inputs,
        sized=numbers,
        shapes=Shapes({x: found for given in numbers.values() for s in given for x, found in rewriter.read(s.expr)}),
        outputs=traced.outputs,
        in_spec=spec,
        out_spec=traced.out_spec,
    )


def position_of(node: fx.Node, argument: str) -> int:
    """The place of an argument among the positional ones of a node's op; past their end where it has none."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    return names.index(argument) if argument in names else len(node.args)


def group_counts(graph: ChannelGraph, norms: Mapping[str, int], keep: Bools) -> dict[str, int]:
    """New numbers of groups, by node: of group norms as given, of grouped convolutions as their tensors say."""
    out = dict(norms)
    for node in (n for mode in graph.modes for n in mode.traced.graph.nodes):
        if node.op == "call_function" and op_name(node.target).startswith("aten::conv"):
            x, w = node.args[0], node.args[1]
            shape = shape_of(w)
            at = len(shape_of(x)) - len(shape) + 1
            channels = graph.kept(graph.env[x][at], keep, shape_of(x)[at])
            at_transposed = position_of(node, "transposed")
            if "transpose" in op_name(node.target) or (at_transposed < len(node.args) and node.args[at_transposed]):
                n_out = graph.kept(graph.env[node][at], keep, shape_of(node)[at])
                out[node.name] = n_out // max(1, graph.kept(graph.env[w][1], keep, shape[1]))
            else:
                out[node.name] = channels // max(1, graph.kept(graph.env[w][1], keep, shape[1]))
    return out
