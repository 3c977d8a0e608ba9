"""The constructor as an oracle: a config is built on the meta device, and the width of every group follows from it.

Σ_g kept[g] · positions of a channel of g + what no group holds = size        for every axis of every tensor
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from fxprune.adapter import Constructor
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.stock.entries import Changes, Path, edited

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Memo: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Refusal:
    """Why a config cannot be: in the words of the constructor, or of the axis that does not fit."""

    why: str
    held: tuple[str, int] | None = None  # the axis that cannot move at all (-1: the tensor itself), if it is one
    compared: bool = False  # found by running both models, not by looking at them

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True)
class Snapshot:
    """What a config makes: the shapes of all tensors, and the numbers that modules hold."""

    shapes: Shapes
    attributes: Mapping[tuple[str, str], Any] = field(repr=False)


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor: positions that no group holds, and for each group how many each of its channels has."""

    tensor: str
    axis: int
    fixed: int
    times: Mapping[int, int]


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Within, what constructors warn of and log about odd configs is not said."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def named_tensors(net: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every name of every parameter and buffer."""
    return itertools.chain(net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False))


class Oracle:
    """What configs make of the groups of a graph.

    Args:
        constructor: of the model.
        graph: its channels.
        names: name of a tensor in what the constructor makes -> in the model, where layers are gone.
        whole, blocks: the graph with these layers, and the blocks that they are.
        before: entries that count the layers, before and after.
    """

    def __init__(
        self,
        constructor: Constructor,
        graph: ChannelGraph,
        names: Mapping[str, str] | None = None,
        whole: ChannelGraph | None = None,
        blocks: tuple[str, ...] = (),
        before: Mapping[Path, tuple[int, int]] | None = None,
    ) -> None:
        self.constructor, self.graph, self.names = constructor, graph, dict(names or {})
        self.whole, self.blocks, self.before = whole or graph, blocks, dict(before or {})
        self.sizes = np.array([len(g) for g in graph.groups], np.int64)
        self.axes = _axes(graph)
        self._built: Memo = {}
        self._solved: Memo = {}
        self.spelt: dict[str, int] = {}
        self.base = self.snapshot({})

    def spelling(self, name: str, value: int) -> Oracle:
        """The same with one more entry told."""
        told = replace(self.constructor, config={**self.constructor.config, name: value})
        made = Oracle(told, self.graph, self.names, self.whole, self.blocks, self.before)
        made.spelt = {**self.spelt, name: value}
        return made

    def needed(self, changes: Changes) -> dict[Path, int]:
        """The entries that were spelt out and without which other sizes would follow from some changes."""
        out: dict[Path, int] = {}
        made = self.snapshot(changes)
        for name, value in self.spelt.items():
            config = edited(self.constructor.config, changes)
            del config[name]
            left = self._snapshot(config)
            if (name,) not in changes and (isinstance(left, Refusal) or left != made):
                out[name,] = value
        return out

    def snapshot(self, changes: Changes) -> Snapshot | Refusal:
        """What the constructor makes of a config with some entries changed."""
        key = repr(sorted(changes.items(), key=repr))
        if key not in self._built:
            self._built[key] = self._snapshot(edited(self.constructor.config, changes))
        found: Snapshot | Refusal = self._built[key]
        return found

    def _snapshot(self, config: dict[str, Any]) -> Snapshot | Refusal:
        try:
            with silenced(), torch.random.fork_rng(devices=[]), torch.device("meta"):
                net = self.constructor.build(config)
        except Exception as e:  # noqa: BLE001 - whatever a constructor raises is its answer
            words = " ".join(str(e).split())[:160]
            return Refusal(f"the constructor says {type(e).__name__}: {words}")
        shapes = {self.names.get(name, name): tuple(t.shape) for name, t in named_tensors(net)}
        held = {
            (path, key): value
            for path, module in net.named_modules(remove_duplicate=False)
            for key, value in vars(module).items()
            if type(value) in (int, float) and not key.startswith("_")
        }
        held |= _configs(net)
        return Snapshot(shapes, held)

    def widths(self, changes: Changes) -> Ints | Refusal:
        """How many channels of every group a config keeps."""
        key = repr(sorted(changes.items(), key=repr))
        if key not in self._solved:
            made = self.snapshot(changes)
            self._solved[key] = made if isinstance(made, Refusal) else self._solve(made.shapes)
        found: Ints | Refusal = self._solved[key]
        return found

    def params(self, changes: Changes) -> int:
        """Elements of the parameters of a config that `widths` accepts."""
        made = self.snapshot(changes)
        assert isinstance(made, Snapshot)
        return sum(math.prod(made.shapes[n]) for n in self.graph.parameters) + self.graph.outside

    def _solve(self, shapes: Shapes) -> Ints | Refusal:
        assert isinstance(self.base, Snapshot)
        if odd := sorted(set(shapes) ^ set(self.base.shapes)):
            what = "vanishes" if odd[0] in self.base.shapes else "appears"
            return Refusal(f"{odd[0]} {what}", (odd[0], -1))
        kept: dict[int, int] = {}
        waiting = sorted(self.axes, key=lambda a: len(a.times))
        while waiting:
            later = []
            for axis in waiting:
                done = self._settle(axis, shapes[axis.tensor], kept)
                if isinstance(done, Refusal):
                    return done
                later += [axis] * (not done)
            if len(later) == len(waiting) and (refused := self._share(later[0], shapes, kept)) is not None:
                return refused
            waiting = later
        return np.array([kept.get(g, n) for g, n in enumerate(self.sizes.tolist())], np.int64)

    def _settle(self, axis: Axis, shape: tuple[int, ...], kept: dict[int, int]) -> bool | Refusal:
        """Whether an axis is done with: it fits, or told the width of the one group that was open."""
        if len(shape) <= axis.axis:
            return Refusal(f"{axis.tensor} has another rank", (axis.tensor, axis.axis))
        place, size = f"{axis.tensor}[{axis.axis}]", shape[axis.axis]
        known = axis.fixed + sum(m * kept[g] for g, m in axis.times.items() if g in kept)
        unknown = [g for g in axis.times if g not in kept]
        if not unknown:
            if size == known:
                return True
            was = axis.fixed + sum(m * int(self.sizes[g]) for g, m in axis.times.items())
            if not axis.times:
                return Refusal(f"{place} becomes {size} of {was}, which is held", (axis.tensor, axis.axis))
            return Refusal(f"{place} becomes {size} of {was}, not {known}")
        if len(unknown) > 1:
            return False
        width, rest = divmod(size - known, axis.times[unknown[0]])
        group = self.graph.groups[unknown[0]]
        if rest or not 1 <= width <= len(group):
            return Refusal(f"{place} becomes {size}, which no whole number of {group.kind} of {group.name} makes")
        kept[unknown[0]] = width
        return True

    def _share(self, axis: Axis, shapes: Shapes, kept: dict[int, int]) -> Refusal | None:
        """Groups that only occur together keep the same share of each."""
        unknown = [g for g in axis.times if g not in kept]
        known = axis.fixed + sum(m * kept[g] for g, m in axis.times.items() if g in kept)
        left, total = shapes[axis.tensor][axis.axis] - known, sum(axis.times[g] * int(self.sizes[g]) for g in unknown)
        for g in unknown:
            width, rest = divmod(int(self.sizes[g]) * left, total)
            if rest or not 1 <= width <= self.sizes[g]:
                return Refusal(f"{axis.tensor}[{axis.axis}] cannot be shared out among its groups")
            kept[g] = width
        return None


def _configs(net: nn.Module) -> dict[tuple[str, str], Any]:
    """The numbers that modules read from the configs that they hold."""
    return {
        (path, f"config.{key}"): value
        for path, module in net.named_modules(remove_duplicate=False)
        for key, value in getattr(vars(module).get("config"), "__dict__", {}).items()
        if type(value) in (int, float) and not key.startswith("_")
    }


def _axes(graph: ChannelGraph) -> list[Axis]:
    """Every axis of every tensor that the graph reads."""
    times: dict[tuple[str, int], dict[int, int]] = {}
    for g, group in enumerate(graph.groups):
        for s in group.slices:
            held = times.setdefault((s.tensor, s.axis), {})
            held[g] = held.get(g, 0) + s.positions.shape[1]
    out = []
    for name, shape in graph.shapes.items():
        for d, size in enumerate(shape):
            held = times.get((name, d), {})
            fixed = size - sum(m * len(graph.groups[g]) for g, m in held.items())
            out.append(Axis(name, d, fixed, held))
    return out
