"""Integers that only other code reads: an exporter's `c`, a `num_features`, a config that states widths.

No trace has read them, so no equation tells what they mean.  One that equals a width is brought along where it can
mean nothing else: every axis of that size in its module (or every piece that the module's own code cuts an axis into)
went to one and the same new size, and no other size of the module's computation is that number.  The others are listed,
for the user to look at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.graph.provenance import Attr, holders_of, leaves
from fxprune.graph.rules.op import op_name, shape_of
from fxprune.graph.rules.pieces import SPLITS, split_axis

Pair: TypeAlias = tuple[int, int]  # a size before and after
LEAST = 8  # below it an integer is more often a count than a width


@dataclass(frozen=True)
class Stale:
    """An integer of a module that equals a width that changed, and was left; `now` are the widths of today."""

    path: str
    name: str
    value: int
    now: tuple[int, ...]

    @property
    def dotted(self) -> str:
        """Its name with dots for lists and dicts, too."""
        return re.sub(r"\['?(\w+)'?\]", r".\1", self.name)

    def __str__(self) -> str:
        where = f"{self.path}.{self.name}".removeprefix(".")
        return f"{where} = {self.value} (now {', '.join(map(str, self.now[:4]))}{', ...' if len(self.now) > 4 else ''})"


def unread(
    small: nn.Module, graph: ChannelGraph, keep: Bools, stated: Mapping[str, tuple[str, int]]
) -> tuple[dict[Attr, int], list[Stale]]:
    """What integers that no trace has read should be, and those that equal a width but may mean something else.

    Args:
        small: the pruned model, its other integers brought along already.
        stated: attribute (dotted) -> the tensor and axis whose size it repeats, as an adapter says.
    """
    read = _read(graph)
    sizes = _Sizes(graph, keep)
    follow: dict[Attr, int] = {}
    stale: list[Stale] = []
    for attr in _integers(small):
        told = stated.get(str(attr))
        now = sizes.within(attr.path, attr.old)
        if told is not None:
            now = sizes.of(*told)
        elif len(pieces := sizes.pieces(attr.path, attr.old)) == 1:
            now = pieces
        if told is not None and len(now) == 1:
            (new,) = now
            follow |= {attr: new} if new != attr.old else {}
        elif str(attr) not in read and now - {attr.old}:
            if len(now) == 1 and not sizes.elsewhere(attr.path, attr.old):
                follow[attr] = next(iter(now))
            else:
                stale.append(Stale(attr.path, str(attr).removeprefix(f"{attr.path}."), attr.old, tuple(sorted(now))))
    stale += _of_dicts(small, sizes)
    return follow, stale


def _read(graph: ChannelGraph) -> set[str]:
    """The attributes that the trace has read, as far as it reached a call, a comparison or a number."""
    recorder = graph.traced.recorder
    exprs = [eq.expr for eq in graph.equations]
    exprs += [*recorder.numbers, *recorder.lost, *(e for pair in recorder.equalities for e in pair)]
    return {str(x) for e in exprs for x in leaves(e) if isinstance(x, Attr)}


class _Sizes:
    """What became of every size, by module."""

    def __init__(self, graph: ChannelGraph, keep: Bools) -> None:
        self.graph, self.keep = graph, keep

    def of(self, tensor: str, axis: int) -> set[int]:
        """The new size of an axis."""
        if tensor not in self.graph.shapes:
            return set()
        return {self.graph.kept(self.graph.tensors[tensor][axis], self.keep, self.graph.shapes[tensor][axis])}

    def within(self, path: str, old: int) -> set[int]:
        """The new sizes of all axes of that size in a module's tensors."""
        return {new for size, new in self._axes.get(path, ()) if size == old}

    def pieces(self, path: str, old: int) -> set[int]:
        """The new sizes of the pieces of that size that a module's own code cuts axes into."""
        return {new for size, new in self._pieces.get(path, ()) if size == old}

    def elsewhere(self, path: str, old: int) -> bool:
        """Whether a value inside a module, or an input of it, has an axis of that size that stays."""
        return old in self._staying.get(path, ())

    @cached_property
    def _axes(self) -> dict[str, set[Pair]]:
        """Module -> old and new sizes of its tensors; "" is the whole."""
        out: defaultdict[str, set[Pair]] = defaultdict(set)
        for tensor, shape in self.graph.shapes.items():
            pairs = {(size, new) for d, size in enumerate(shape) for new in self.of(tensor, d)}
            for name in self.graph.within.get(tensor, (tensor,)):
                for path in _holding(name):
                    out[path] |= pairs
            out[""] |= pairs
        return out

    @cached_property
    def _pieces(self) -> dict[str, set[Pair]]:
        out: defaultdict[str, set[Pair]] = defaultdict(set)
        for node in self.graph.traced.graph.nodes:
            if node.op == "call_function" and op_name(node.target) in SPLITS:
                d = split_axis(node)
                for piece, labels in zip(node.meta["val"], self.graph.env[node], strict=True):
                    size = piece.shape[d]
                    out[node.meta["fxprune_module"]].add((size, self.graph.kept(labels[d], self.keep, size)))
        return out

    @cached_property
    def _staying(self) -> dict[str, set[int]]:
        """Module -> sizes of axes that stay, of values inside it and of its inputs; "" is the whole."""
        out: defaultdict[str, set[int]] = defaultdict(set)
        for node in self.graph.traced.graph.nodes:
            labels = self.graph.env.get(node)
            if not isinstance(node.meta.get("val"), torch.Tensor) or not isinstance(labels, tuple):
                continue
            axes = zip(shape_of(node), labels, strict=True)
            stay = {size for size, axis in axes if self.graph.kept(axis, self.keep, size) == size}
            calls = {path for n in (node, *node.users) for path in n.meta.get("fxprune_calls", ())}
            for path in (*calls, ""):
                out[path] |= stay
        return out


def _holding(name: str) -> Iterator[str]:
    """A dotted name and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _integers(model: nn.Module) -> Iterator[Attr]:
    """The public integers of modules that are not torch's own, of rows of them, and of config objects."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):  # their sizes are known (see `attributes`)
            continue
        held = {
            k: v for k, v in holders_of(module).items() if k == "config" and id(v) not in seen and type(v) is not dict
        }
        seen |= {id(v) for v in held.values()}
        for holder, owner in {"": module, **held}.items():
            for name, value in list(vars(owner).items()):
                yield from _leaves(value, lambda v, i, n=name, p=path, h=holder: Attr(p, n, v, i, h), name)  # type: ignore[misc]


def _leaves(value: Any, leaf: Callable[[int, int | None], Attr], name: str) -> Iterator[Attr]:
    if name.startswith("_") or name == "training":
        return
    if type(value) is int and value >= LEAST:
        yield leaf(value, None)
    elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
        yield from (leaf(v, i) for i, v in enumerate(value) if v >= LEAST)


def _of_dicts(model: nn.Module, sizes: _Sizes) -> Iterator[Stale]:
    """Integers in the dict-like configs and lists of dicts of modules: a folder, or a decoder, is built from these."""
    for path, module in model.named_modules():
        held: list[tuple[str, Any]] = []
        if isinstance(config := getattr(module, "config", None), Mapping):
            held.append(("config", config))
        for name, value in vars(module).items():
            rows = value if isinstance(value, list) else getattr(value, "info", None)
            if isinstance(rows, list) and rows and all(isinstance(r, Mapping) for r in rows):
                held += [(f"{name}{'' if rows is value else '.info'}[{i}]", row) for i, row in enumerate(rows)]
        for name, table in held:
            for key, value in table.items():
                for n in dict.fromkeys(value if isinstance(value, (list, tuple)) else [value]):
                    if type(n) is int and n >= LEAST and (now := sizes.within(path, n)) - {n}:
                        yield Stale(path, f"{name}[{key!r}]", n, tuple(sorted(now)))
