"""Runs of blocks, one after the other on one stream, that a linear map can stand for; and how well it does.

unit        the fewest blocks in a row of which one module takes the stream and gives what is added to it, so that
            a map can live there: a branch of a transformer, both branches of a DiT block (whose norms are shared)
interval    units in a row, which go together
recovery    the map is fitted on the activations of the given model, in closed form,

                min_W,b  Σ |W x + b - (y - x)|² + λ |W|²      x, y: the stream before and after the interval

            and the model is run with it: |outputs - dense outputs|² / |dense outputs|² is what is lost
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxPruneError
from fxprune.graph.blocks import Block, inside
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.graph.modules import Inputs, same_draws
from fxprune.graph.packing import copied
from fxprune.graph.rules.op import is_tensor, shape_of
from fxprune.graph.trace import place_of
from fxprune.masking.masked_run import MaskedRun
from fxprune.planning.norms import NormChange
from fxprune.planning.plan import Plan
from fxprune.rewriting.fitted import Fitted, channel_axis, kept_positions, layer_of
from fxprune.rewriting.rewrite import rewrite
from fxprune.rewriting.skip import Answer, Key, Passed, Skip, Zeros, put
from fxprune.verification import check_dense

LONGEST = 4  # blocks of a unit
UNITS = 3  # of an interval
RIDGE = 1e-3  # of the mean square of the activations
Line = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Map:
    """A linear map of channels: weight (C, C), bias (C,)."""

    weight: Tensor
    bias: Tensor


def chains(graph: ChannelGraph) -> list[list[Block]]:
    """Blocks in rows: each adds to what the one before it gave, or to an element-wise function of that."""
    nodes = {n.name: n for n in graph.traced.graph.nodes}
    ends: dict[str, list[Block]] = {}
    out: list[list[Block]] = []
    for block in graph.blocks:
        source = _source(nodes[block.stream], ends)
        row = ends.pop(source) if source is not None else []
        if not row:
            out.append(row)
        row.append(block)
        ends[block.node] = row
    return out


def _source(node: fx.Node, ends: Mapping[str, object]) -> str | None:
    """The addition that a stream comes from, through ops of one argument that keep its shape."""
    while node.name not in ends:
        data = [n for n in node.all_input_nodes if is_tensor(n)]
        if node.op != "call_function" or len(data) != 1 or shape_of(data[0]) != shape_of(node):
            return None
        node = data[0]
    return node.name


def units(net: nn.Module, graph: ChannelGraph, allowed: Callable[[Block], bool]) -> list[list[list[Block]]]:
    """Every chain as units in a row; what no map can stand for ends a row."""
    out = []
    for chain in chains(graph):
        row: list[list[Block]] = []
        left = list(chain)
        while left:
            unit = next((left[:n] for n in range(1, min(LONGEST, len(left)) + 1) if _fits(net, graph, left[:n])), None)
            if unit is not None and all(map(allowed, unit)):
                row.append(unit)
            elif row:
                out.append(row)
                row = []
            left = left[len(unit or [0]) :]
        out.append(row)
    return [row for row in out if row]


def intervals(rows: Sequence[Sequence[list[Block]]]) -> Iterator[tuple[Block, ...]]:
    """Every run of a few units."""
    for row in rows:
        for start in range(len(row)):
            for n in range(1, min(UNITS, len(row) - start) + 1):
                yield tuple(itertools.chain(*row[start : start + n]))


# ---- where a map can live -------------------------------------------------------------------------------------------


def taking_out(graph: ChannelGraph, names: Sequence[str]) -> Plan:
    """The plan that takes out some blocks, and no channels."""
    sizes = {g.name: len(g) for g in graph.without(names).groups}
    traced = (graph.prefer[0] if graph.prefer else "heads", *graph.revisions)
    return Plan(graph.model_class, graph.fingerprint, {}, sizes, blocks=tuple(names), traced=traced)


def _fits(net: nn.Module, graph: ChannelGraph, run: Sequence[Block]) -> bool:
    """Whether a map can stand for a run of blocks."""
    if channel_axis(graph, run[0]) is None or len({shape_of(_node(graph, b.node)) for b in run}) > 1:
        return False
    plan = taking_out(graph, [b.name for b in run])
    try:
        small = rewrite(net, graph, plan).model
        return host(net, small, graph, plan, run) is not None
    except (FxPruneError, RuntimeError):
        return False


def host(
    net: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, run: Sequence[Block]
) -> tuple[str, Block, Key] | None:
    """A module of the pruned model where a map for a run of blocks can live, the block whose addition it goes into, and
    the input that is the stream: found by trying a random map there; None where there is none."""
    keep = plan.kept(graph)
    places = [(path, m) for path, m in small.named_modules() if isinstance(m, Skip) and not isinstance(m, Fitted)]
    for block in run:
        near = [(p, m) for p, m in places if any(inside(p, own) or inside(own, p) for own in block.modules)]
        for path, skip in near:
            key = _key(skip.answer)
            if key is not None and _lives(net, small, graph, plan, keep, block, path, skip, key):
                return path, block, key
    return None


def _key(answer: Answer) -> Key | None:
    """The input that an answer's first tensor is, or is like."""
    first = answer[0] if isinstance(answer, tuple) and answer else answer
    return first.key if isinstance(first, (Passed, Zeros)) else None


def _lives(
    net: nn.Module,
    small: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    keep: Bools,
    block: Block,
    path: str,
    skip: Skip,
    key: Key,
) -> bool:
    axis, like = channel_axis(graph, block), _node(graph, block.stream).meta["val"]
    if axis is None:
        return False
    size = len(kept_positions(graph, block, axis, keep))
    place = torch.empty(0, dtype=like.dtype, device=place_of(graph.traced)[0])
    drawn = torch.Generator().manual_seed(0)
    made = Map(torch.randn(size, size, generator=drawn) / size**0.5, torch.randn(size, generator=drawn))
    put(
        small,
        path,
        Fitted(skip, block.name, key, layer_of(made.weight.to(place), made.bias.to(place), axis, like.dim())),
    )
    try:
        return check_dense(net, small, graph, plan).ok
    except FxPruneError:  # whatever it meets, no map can live there
        return False
    finally:
        put(small, path, skip)


def _node(graph: ChannelGraph, name: str) -> fx.Node:
    found: fx.Node = next(n for n in graph.traced.graph.nodes if n.name == name)
    return found


# ---- fitting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activations:
    """A model at work on some inputs of the shapes of a trace.

    Attributes:
        net: the given model.
        graph: traced on inputs of these shapes.
        inputs: of each call.
    """

    net: nn.Module
    graph: ChannelGraph
    inputs: tuple[Inputs, ...]

    def values(
        self,
        nodes: Sequence[str],
        keep: Bools | None = None,
        norms: Mapping[str, NormChange] | None = None,
        gone: Sequence[str] = (),
        lines: Mapping[str, Line] | None = None,
    ) -> tuple[list[dict[str, Tensor]], list[list[Tensor]]]:
        """For every input the values of some nodes, and the outputs; of the given model, or as a plan leaves it."""
        mask = None if keep is None else torch.as_tensor(keep, dtype=torch.float32)
        seen, outputs = [], []
        with torch.no_grad():
            for inputs in self.inputs:
                with same_draws():
                    run = MaskedRun(self.graph, self.net, mask, norms, dict.fromkeys(gone, 0.0), None, lines, nodes)
                    outputs.append([o for o in run(copied(inputs)) if isinstance(o, Tensor) and o.is_floating_point()])
                seen.append(run.seen)
        return seen, outputs

    def fitted(self, block: Block, before: Sequence[Tensor], after: Sequence[Tensor], keep: Bools) -> Map:
        """The map that is nearest to what turns streams into others, on the channels that stay."""
        axis = channel_axis(self.graph, block)
        assert axis is not None
        at = kept_positions(self.graph, block, axis, keep)

        def rows(values: Sequence[Tensor]) -> Tensor:
            each = [v.index_select(axis, at.to(v.device)).movedim(axis, -1).flatten(0, -2).double() for v in values]
            return torch.cat(each)

        x, y = rows(before), rows(after)
        return least_squares(x, y - x)


def least_squares(x: Tensor, y: Tensor) -> Map:
    """The linear map from x (n, C) to y (n, C) of least squares, with a ridge on its weight."""
    mx, my = x.mean(0), y.mean(0)
    a, b = x - mx, y - my
    gram = a.T @ a
    gram += RIDGE * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, a.T @ b).T
    return Map(weight, my - weight @ mx)


def distance(got: Sequence[Sequence[Tensor]], want: Sequence[Sequence[Tensor]]) -> float:
    """|got - want|² / |want|² over all outputs."""
    pairs = [(a.double(), b.double()) for g, w in zip(got, want, strict=True) for a, b in zip(g, w, strict=True)]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    return off / max(sum(float(b.square().sum()) for _, b in pairs), 1e-30)


def revised(graph: ChannelGraph, like: ChannelGraph) -> ChannelGraph:
    """A fresh trace's graph, by the steps that led to another one."""
    return replace(graph.revised(like.revisions), fixed=like.fixed) if like.revisions or like.fixed else graph
