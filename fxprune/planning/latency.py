"""Latency of a plan on this device: a table of measured ops, and a prediction for any width.

The traced graph is run node by node with random weights, dense and as a few plans of different widths would leave it,
in turns.  So an op is timed among its neighbours, with their shapes and with the weights that push each other out of
the caches: a convolution alone, its weights still warm from the last call, is up to three times as fast.  The time of
a node is then fitted as

    t(l) = sum over subsets S of its axes of theta_S * prod over S of l,    theta_S >= 0

in the lengths l of its prunable axes (alone and in pairs), by non-negative least squares.  The sum over nodes is a sum
of products of lengths like any other cost, and never falls when channels come back.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Axis, Bools
from fxprune.graph.modules import same_draws
from fxprune.graph.program import Program, group_counts, program_of
from fxprune.graph.trace import place_of
from fxprune.planning.costs.counted import CountedCosts
from fxprune.planning.costs.latency_table import Table
from fxprune.planning.costs.polynomials import Floats, Product, Terms, terms_of
from fxprune.planning.costs.stopwatch import Stopwatch, quiet
from fxprune.planning.limits import Limits
from fxprune.planning.norms import norm_changes
from fxprune.planning.search import Cut
from fxprune.planning.selection import selected

SHARES = (0.2, 0.4, 0.6, 0.8)  # of channels, that the measured plans remove
ROUND_TO = (1, 16, 32)  # what their widths are rounded to: every width, and those that vector units like
SECONDS, ROUNDS = 1.0, (3, 8)  # time for one measurement, and the fewest and most rounds that it takes


@dataclass(frozen=True)
class Left:
    """What a cut leaves: which components stay, and the new number of groups of every group norm that changes."""

    keep: Bools
    norms: Mapping[str, int]

    @classmethod
    def whole(cls, graph: ChannelGraph) -> Left:
        """All of it."""
        return cls(graph.keep_all(), {})

    @classmethod
    def by(cls, graph: ChannelGraph, cut: Cut) -> Left:
        """Without the channels of a cut."""
        keep = graph.keep_all()
        for g, c in zip(cut.group.tolist(), cut.channel.tolist(), strict=True):
            keep[graph.groups[g].components[c]] = False
        return cls(keep, {node: change.after for node, change in norm_changes(graph, keep).items()})


@dataclass(frozen=True)
class Bench:
    """A graph rewritten for a plan, with random weights, to be timed node by node."""

    program: Program
    state: dict[str, Tensor]
    given: dict[str, Any]
    device: torch.device

    @classmethod
    def of(cls, graph: ChannelGraph, left: Left) -> Bench:
        traced, keep = graph.traced, left.keep
        state = {}
        for node in traced.graph.nodes:
            if (name := traced.tensors.get(node.name)) is not None:
                like = node.meta["val"]
                shape = [graph.kept(a, keep, s) for a, s in zip(graph.tensors[name], like.shape, strict=True)]
                state[name] = _random(like, shape)
        given = [x.clone() if isinstance(x, Tensor) else x for x in pytree.tree_leaves(traced.example)]
        program = program_of(graph, keep, group_counts(graph, left.norms, keep))
        return cls(program, state, dict(zip(traced.inputs, given, strict=True)), place_of(graph.traced)[0])

    def laps(self) -> Floats:
        """Seconds of every node in one run."""
        watch = Stopwatch(self.device)
        env: dict[fx.Node, Any] = {}
        watch.stamp()
        for node in self.program.nodes:
            env[node] = self.program.step(node, env, self.given, self.state)
            for gone in self.program.last.get(node, ()):
                env.pop(gone, None)
            watch.stamp()
        return watch.laps()


def _random(like: Tensor, shape: list[int]) -> Tensor:
    """Weights that keep activations at about one: no denormal numbers, no negative variances."""
    generator = torch.Generator(like.device).manual_seed(0)
    order = sorted(range(like.dim()), key=lambda d: -like.stride()[d])
    stored = [shape[d] for d in order]
    if not like.is_floating_point():
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    made = torch.rand(stored, generator=generator, device=like.device) + 0.5
    if like.dim() > 1:
        made = (made - 1) / math.sqrt(max(1, math.prod(shape[1:])) / 12)
    return made.to(like.dtype).permute(*np.argsort(order).tolist())


def race(a: Bench, b: Bench) -> tuple[Floats, Floats]:
    """Seconds of every node of both, in the fastest of several rounds in turns, after one that does not count."""
    with quiet(a.device), same_draws():
        slowest = float(max(x.laps().sum() for x in (a, b) for _ in range(2)))
        rounds = int(np.clip(SECONDS / max(slowest, 1e-9), *ROUNDS))
        both = [(a.laps(), b.laps()) for _ in range(rounds)]
    return _fastest([x for x, _ in both]), _fastest([y for _, y in both])


def _fastest(runs: list[Floats]) -> Floats:
    """Each node's fastest lap, scaled to the sum of the fastest run."""
    laps: Floats = np.min(runs, axis=0)
    laps *= min(r.sum() for r in runs) / laps.sum()
    return laps


@dataclass(frozen=True)
class Latency:
    """Microseconds of one forward: a prediction for any plan (`total`), and the measured sum over ops for one (`at`).

    Attributes:
        graph: whose forward on the example inputs it is.
        terms: the fit.
        table: measured times of this device.
    """

    graph: ChannelGraph
    terms: Terms
    table: Table

    def total(self, removed: Floats) -> float:
        """Predicted microseconds when group g loses `removed[g]` channels."""
        return self.terms.total(removed)

    def at(self, left: Left) -> tuple[float, float]:
        """Microseconds, dense and of what is left, measured at its own widths (once: the table keeps them)."""
        dense, laps = measured(self.graph, left, self.table)
        return dense, float(laps.sum())


def latency_of(graph: ChannelGraph, progress: bool = True) -> Latency:
    """The latency of a graph's forward on the device of its weights; measured where the table does not know it yet.

    Raises:
        BudgetError: where the model is on the meta device.
    """
    if "latency" not in graph.__dict__:  # kept with the graph, as its cached properties are
        device, dtype = place_of(graph.traced)
        if device.type == "meta":
            raise BudgetError("a latency cannot be measured on the meta device; move the model to the device it is for")
        table = Table.of(device, dtype)
        graph.__dict__["latency"] = Latency(graph, _fitted(graph, table, progress), table)
    made: Latency = graph.__dict__["latency"]
    return made


def measured(graph: ChannelGraph, left: Left, table: Table) -> tuple[float, Floats]:
    """Microseconds of the dense graph, and of every node of what is left."""

    def measure() -> list[float]:
        a, b = race(Bench.of(graph, Left.whole(graph)), Bench.of(graph, left))
        return [float(x) * 1e6 for x in (a.sum(), *b)]

    row: Floats = np.array(table.get(_key(graph, left), measure))
    return float(row[0]), row[1:]


def _key(graph: ChannelGraph, left: Left) -> str:
    """What decides the times: every call of the graph with its shapes, before and after."""
    program = program_of(graph, left.keep, group_counts(graph, left.norms, left.keep))
    calls = []
    for node in program.nodes:
        value, labels = node.meta.get("val"), graph.env.get(node)
        shape = [tuple(v.shape) + v.stride() for v in pytree.tree_leaves(value) if isinstance(v, Tensor)]
        live = [graph.kept(a, left.keep, 0) for a in labels] if isinstance(labels, tuple) else []
        calls.append((str(node.target), program.arguments.get(node), node.kwargs, shape, live))
    return f"{graph.model_class} {hashlib.sha256(repr(calls).encode()).hexdigest()[:24]}"


# ---- fit -----------------------------------------------------------------------------------------------------------


def _fitted(graph: ChannelGraph, table: Table, progress: bool) -> Terms:
    from rich.progress import track

    dense, rows, removed = 0.0, [], []
    whole = (Left.whole(graph), np.zeros(len(graph.groups)))
    samples = [whole, *((Left.by(graph, cut), cut.removed) for cut in _samples(graph))]
    for left, gone in track(samples, "measuring latencies", transient=True, disable=not progress):
        now, laps = measured(graph, left, table)
        dense = dense or now
        rows.append(laps * (dense / now))  # in units of the first run, whatever else the machine did since
        removed.append(gone)
    nodes = list(graph.traced.graph.nodes)
    axes = [_axes(graph, n) for n in nodes]
    lengths = terms_of(graph, [(1.0, [a]) for a in itertools.chain(*axes)])
    known = np.array([lengths.each(r) for r in removed])
    products: list[Product] = []
    start = 0
    for node_axes, times in zip(axes, np.array(rows).T, strict=True):
        products += _fit(node_axes, known[:, start : start + len(node_axes)], times)
        start += len(node_axes)
    return terms_of(graph, products)


def _samples(graph: ChannelGraph) -> Iterator[Cut]:
    """Valid cuts of many widths: random scores, on a scale of its own in every group."""
    rng, costs = np.random.default_rng(0), CountedCosts(graph)
    for share, round_to in itertools.product(SHARES, ROUND_TO):
        scores = {g.name: rng.random(len(g)) * rng.choice([0.5, 1.0, 2.0]) for g in graph.groups}
        limits = Limits(round_to=round_to)
        try:
            yield selected(costs, scores, limits, "channels", share)
        except BudgetError as e:
            if e.reachable:
                yield selected(costs, scores, limits, "channels", share * e.reachable)


def _axes(graph: ChannelGraph, node: fx.Node) -> list[Axis]:
    """The different prunable axes of what a node reads and makes."""
    found: dict[bytes, Axis] = {}
    for n in [node, *node.all_input_nodes]:
        labels = graph.env.get(n)
        for axis in pytree.tree_leaves(labels) if node.op == "call_function" else ():
            if axis is not None and graph.component[axis].any():
                found.setdefault(graph.component[axis].tobytes(), axis)
    return list(found.values())


def _fit(axes: list[Axis], lengths: Floats, times: Floats) -> list[Product]:
    """theta of one node, as products of its axes, from lengths (runs, axes) and microseconds (runs,)."""
    from scipy.optimize import nnls  # slow to import

    subsets = [s for k in range(3) for s in itertools.combinations(range(len(axes)), k)]
    full = lengths.max(axis=0)
    columns = np.stack([(lengths[:, s] / full[list(s)]).prod(axis=1) for s in subsets], axis=1)
    theta, _ = nnls(columns, times)
    return [
        (float(t / full[list(s)].prod()), [axes[i] for i in s]) for t, s in zip(theta, subsets, strict=True) if t > 0
    ]
