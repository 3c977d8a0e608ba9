"""Blocks that go, chosen by how well a linear map can stand for them, and the maps in their place.

    choose      intervals of blocks, the least loss of outputs for the cost that goes first (see `intervals`)
    install     one map an interval, in the order of the network: each is fitted on the streams of the model as it is by
                then (blocks and channels gone, earlier maps at work) towards what the given model has there

What is proven in the end: the model computes what the given one does with the maps in place of what the blocks add.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.arguments import shown
from fxprune.errors import BudgetError, InputsError, VerifyError
from fxprune.graph.blocks import Block
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import Inputs, evaluating, seed_torch
from fxprune.graph.packing import copied, packed
from fxprune.graph.trace import place_of
from fxprune.planning.blocks import FAR, shares_of, too_coarse
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost
from fxprune.planning.plan import Plan
from fxprune.planning.selectors import Ignore, ignored_blocks
from fxprune.pruning.attempt import Realized, proofs
from fxprune.pruning.intervals import Activations, distance, host, intervals, revised, units
from fxprune.rewriting.compensation import makes_up
from fxprune.rewriting.fitted import Fitted, channel_axis, kept_positions, layer_of, widened
from fxprune.rewriting.skip import Skip, put
from fxprune.scoring.batches import loss_on, missing
from fxprune.scoring.context import Loss
from fxprune.scoring.score import Criterion

CALLS = 8  # of the model, whose activations maps are fitted on
MEASURES = ("params", "macs")
Run = tuple[Block, ...]


def require_replaceable(of: str, granularity: str, criterion: str | type[Any] | Criterion) -> None:
    """Raise `BudgetError` unless maps can stand for what such a budget takes out, `InputsError` where a criterion makes
    up for it already."""
    if granularity not in ("block", "both"):
        raise BudgetError(
            f'replace="linear" stands for blocks: pass granularity="block" or "both", not {granularity!r}'
        )
    if of not in MEASURES:
        raise BudgetError(f'replace="linear" counts what the maps cost in {" and ".join(MEASURES)}, not of={of!r}')
    if makes_up(criterion):
        raise InputsError(
            f'replace="linear" puts maps in the place of blocks, and criterion={shown(criterion)} corrects the layers '
            "that stay for their loss: leave out one of them"
        )


def recorded(net: nn.Module, data: Iterable[Any] | None, loss: Loss | None, seed: int) -> list[Inputs]:
    """What a model is called with where a loss is taken: the first calls, of one structure and shape.

    Raises:
        InputsError: there is no data or no loss, or the loss never calls the model.
    """
    if data is None or loss is None:
        raise InputsError(missing('replace="linear"', data is None, loss is None))
    calls: list[Inputs] = []
    with torch.no_grad(), evaluating(net), torch.random.fork_rng(), _listening(net, calls):
        for number, batch in enumerate(data):
            seed_torch(net, seed + number)
            loss_on(loss, net, batch)
            if len(calls) >= CALLS:
                break
    if not calls:
        raise InputsError(
            f"loss(model, batch) never calls the {type(net).__name__}, whose activations maps are fitted on"
        )
    like = _shapes(calls[0])
    return [c for c in calls if _shapes(c) == like][:CALLS]


@contextmanager
def _listening(net: nn.Module, calls: list[Inputs]) -> Iterator[None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(calls) < CALLS:
            calls.append(copied(packed((args, kwargs))))

    handle = net.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _shapes(inputs: Inputs) -> Any:
    leaves, structure = torch.utils._pytree.tree_flatten(inputs)
    return str(structure), [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves]


@dataclass
class Replacement:
    """Which blocks go and what stands for them.

    Args:
        net: the given model.
        activations: of it, on a trace of the inputs that were recorded.

    Attributes:
        runs: the intervals that were chosen last.
    """

    activations: Activations
    runs: tuple[Run, ...] = field(default=(), init=False)

    @property
    def net(self) -> nn.Module:
        """The given model."""
        return self.activations.net

    def choose(
        self, graph: ChannelGraph, ratio: float, of: str, ignore: Ignore, nearest: bool
    ) -> tuple[tuple[str, ...], float]:
        """Names of the blocks that go, and the share of the cost that goes with them, less that of the maps.

        Raises:
            BudgetError: with `nearest`, where all of them together are less than the ratio, or no number of
                them is near.
        """
        held = ignored_blocks(graph, ignore)
        rows = units(self.net, graph, lambda b: b.name not in held)
        candidates = list(intervals(rows))
        share = shares_of(graph, of)
        total = dense_cost(CostModel(graph), of)

        def left_over(runs: Sequence[Run]) -> float:
            names = frozenset(b.name for run in runs for b in run)
            return share(names) - sum(map_cost(graph, run[0], of) for run in joined(rows, runs)) / total

        gains = {run: left_over([run]) for run in candidates}
        worth = {run: gain for run, gain in gains.items() if gain > 0 and (gain <= ratio or nearest)}
        order = sorted(worth, key=dict(zip(worth, self._losses(graph, list(worth), worth), strict=True)).__getitem__)
        taken: list[Run] = []
        for run in order:
            if not _overlaps(run, taken) and left_over([*taken, run]) <= ratio + 1e-9:
                taken.append(run)
        if nearest:
            more = [[*taken, run] for run in order if not _overlaps(run, taken)]
            best = min([taken, *more], key=lambda runs: abs(left_over(runs) - ratio))
            above = [left for m in more if (left := left_over(m)) > ratio]
            if left_over(best) < ratio - 0.005 and not above:
                self._refuse(graph, left_over(best), ratio, of, len(candidates))
            if left_over(best) < FAR * ratio and above:
                raise too_coarse(graph, ratio, of, left_over(best), min(above))
            taken = best
        at = {b.name: i for i, b in enumerate(graph.blocks)}
        self.runs = tuple(joined(rows, taken))
        return tuple(sorted((b.name for run in taken for b in run), key=at.__getitem__)), left_over(taken)

    def _refuse(self, graph: ChannelGraph, most: float, ratio: float, of: str, found: int) -> None:
        raise BudgetError(
            f"{ratio:.1%} of {of} cannot be removed from this {graph.model_class} with linear maps in place of blocks: "
            f"all that they can stand for make {most:.1%} (intervals: {found}, blocks: {len(graph.blocks)}). Ask for "
            "less, or leave out replace=",
            reachable=max(0.0, most),
        )

    def _losses(self, graph: ChannelGraph, runs: Sequence[Run], gains: dict[Run, float]) -> list[float]:
        """What the outputs lose for the cost that goes, interval by interval."""
        acts = replace(self.activations, graph=revised(self.activations.graph, graph))
        named = {b.name: b for b in acts.graph.blocks}
        nodes = {getattr(named[b.name], what) for run in runs for b in run for what in ("node", "stream")}
        seen, dense = acts.values(sorted(nodes))
        keep, out = acts.graph.keep_all(), []
        for run in runs:
            first, last = named[run[0].name], named[run[-1].name]
            made = acts.fitted(first, [s[first.stream] for s in seen], [s[last.node] for s in seen], keep)
            layer = _layer(acts.graph, first, made.weight, made.bias, seen[0][first.stream])
            lines = {first.name: widened(acts.graph, first, keep, layer)}
            _, got = acts.values((), gone=[b.name for b in run], lines=lines)
            out.append(distance(got, dense) / gains[run])
        return out

    def install(self, cut: Realized) -> tuple[Realized, tuple[str, ...]]:
        """The model with a map for every interval, proven anew; and what is to be told of each.

        Raises:
            VerifyError: it does not compute what the given model does with the maps in place of the blocks.
        """
        plan, graph, small = cut.plan, cut.graph, cut.done.model
        acts = replace(self.activations, graph=revised(self.activations.graph, graph))
        named, keep = {b.name: b for b in acts.graph.blocks}, plan.kept(acts.graph)
        lines: dict[str, Callable[[Tensor], Tensor]] = {}
        notes, added = [], []
        for run in self._left(plan):
            title = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
            if (found := host(self.net, small, graph, plan, run)) is None:
                notes.append(f"{title}: taken out, and no module is left that a linear map could stand in")
                continue
            path, block, key = found
            own, last = named[block.name], named[run[-1].name]
            dense, _ = acts.values([last.node])
            now, _ = acts.values([own.stream], keep, plan.norms, plan.blocks, lines)
            before, after = [s[own.stream] for s in now], [s[last.node] for s in dense]
            made = acts.fitted(own, before, after, keep)
            layer = _layer(acts.graph, own, made.weight, made.bias, before[0])
            skip = small.get_submodule(path)
            assert isinstance(skip, Skip)
            put(small, path, Fitted(skip, block.name, key, layer))
            lines[own.name] = widened(acts.graph, own, keep, layer)
            added.append(block)
            explained = _explained(acts, own, keep, before, after, lines[own.name])
            notes.append(
                f"{title}: a linear map at {path} stands for {len(run)} blocks ({explained:.0%} of what they add)"
            )
        checks = proofs(self.net, small, graph, plan) if cut.checks else ()
        for check in checks:
            if not check.ok:
                raise VerifyError(
                    f"{check} for {type(self.net).__name__} with linear maps; the given model is unchanged"
                )
        return replace(cut, plan=with_maps(graph, plan, added), checks=checks), tuple(notes)

    def _left(self, plan: Plan) -> list[Run]:
        """The chosen intervals, as far as the plan takes their blocks out."""
        return [run for run in self.runs if all(b.name in plan.blocks for b in run)]


def joined(rows: Sequence[Sequence[Sequence[Block]]], runs: Sequence[Run]) -> list[Run]:
    """The same blocks in as few runs as they make: linear maps in a row are one."""
    taken = {b.name for run in runs for b in run}
    out: list[Run] = []
    for row in rows:
        for gone, some in itertools.groupby(itertools.chain(*row), lambda b: b.name in taken):
            out += [tuple(some)] if gone else []
    return out


def _overlaps(run: Run, others: Sequence[Run]) -> bool:
    names = {b.name for b in run}
    return any(names & {b.name for b in other} for other in others)


def _layer(graph: ChannelGraph, block: Block, weight: Tensor, bias: Tensor, like: Tensor) -> nn.Module:
    axis = channel_axis(graph, block)
    assert axis is not None
    return layer_of(weight.to(like), bias.to(like), axis, like.dim())


def _explained(
    acts: Activations,
    block: Block,
    keep: Any,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    line: Callable[[Tensor], Tensor],
) -> float:
    """The share of the squares of what the blocks add that the map adds, too."""
    axis = channel_axis(acts.graph, block)
    assert axis is not None
    at = kept_positions(acts.graph, block, axis, keep)
    off = whole = 0.0
    with torch.no_grad():
        for x, y in zip(before, after, strict=True):
            want, got = ((v.index_select(axis, at.to(v.device))).double() for v in (y - x, line(x)))
            off, whole = off + float((got - want).square().sum()), whole + float(want.square().sum())
    return 1 - off / max(whole, 1e-30)


def map_cost(graph: ChannelGraph, block: Block, of: str, keep: Any = None) -> float:
    """What a map in the place of a block costs: C² + C parameters, C² multiply-accumulates a place."""
    axis = channel_axis(graph, block)
    assert axis is not None
    size = len(kept_positions(graph, block, axis, graph.keep_all() if keep is None else keep))
    shape = next(n for n in graph.traced.graph.nodes if n.name == block.stream).meta["val"].shape
    places = float(np.prod([int(s) for d, s in enumerate(shape) if d != axis]))
    return size * size + size if of == "params" else size * size * places


def with_maps(graph: ChannelGraph, plan: Plan, blocks: Sequence[Block]) -> Plan:
    """A plan whose costs count the maps in the place of some blocks."""
    keep, costs = plan.kept(graph), dict(plan.costs)
    for of in MEASURES:
        before, after = costs[of]
        costs[of] = before, after + sum(map_cost(graph, b, of, keep) for b in blocks)
    if "memory" in costs:
        size = place_of(graph.traced)[1].itemsize
        before, after = costs["memory"]
        costs["memory"] = before, after + size * sum(map_cost(graph, b, "params", keep) for b in blocks)
    before, after = costs[plan.of]
    return replace(plan, costs=costs, achieved=1 - after / before)
