"""Whole layers as an entry: `num_layers` counts the items of a stack, and any of them can go that is an addition.

The constructor drops the last item; which one really goes is chosen by score, and the others move up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxprune.errors import FxPruneError, PlanError
from fxprune.graph.blocks import inside
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost
from fxprune.planning.plan import Plan
from fxprune.stock.entries import Path, edited, get, numbers
from fxprune.stock.oracle import Oracle, Refusal, Shapes, Snapshot, named_tensors


@dataclass(frozen=True)
class Layers:
    """An entry that counts layers: when it falls by one, every stack loses an item."""

    entry: Path
    count: int
    stacks: tuple[str, ...]


@dataclass(frozen=True)
class Depth:
    """Layers that go: from each stack some items; what the config says then, and the blocks of the graph."""

    gone: Mapping[Path, tuple[str, ...]]
    changes: Mapping[Path, Any]
    blocks: tuple[str, ...]
    share: float = 0.0


def layers_of(oracle: Oracle) -> list[Layers]:
    """The entries that count layers."""
    found = []
    for path, value in numbers(oracle.constructor.config):
        if isinstance(value, int) and value > 1 and (stacks := _stacks(oracle, path, value)):
            found.append(Layers(path, value, stacks))
    return found


def _stacks(oracle: Oracle, path: Path, value: int) -> tuple[str, ...]:
    """The stacks whose last item goes when an entry falls by one, nothing else changing."""
    assert isinstance(oracle.base, Snapshot)
    made = oracle.snapshot(shorter(oracle.constructor.config, path, [value - 1]))
    if isinstance(made, Refusal) or any(oracle.base.shapes.get(n) != s for n, s in made.shapes.items()):
        return ()
    lost = oracle.base.shapes.keys() - made.shapes.keys()
    items = {item for name in lost if (item := _outermost(name, lost, oracle.base.shapes)) is not None}
    whole = all(any(inside(name, item) for item in items) for name in lost)
    return tuple(sorted(item.rpartition(".")[0] for item in items)) if whole else ()


def _outermost(name: str, lost: Any, shapes: Shapes) -> str | None:
    """The last item of a stack that a lost tensor is in, all of which is lost."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            item, later = ".".join(parts[: i + 1]), ".".join([*parts[:i], str(int(part) + 1)])
            held = [n for n in shapes if inside(n, item)]
            if all(n in lost for n in held) and not any(inside(n, later) for n in shapes):
                return item
    return None


def shorter(config: Mapping[str, Any], path: Path, gone: Sequence[int]) -> dict[Path, Any]:
    """The changes that leave out some layers; lists with one item for each layer lose the same items."""
    count = get(config, path)
    changes: dict[Path, Any] = {path: count - len(gone)}
    for at, row in _lists(get(config, path[:-1]) if len(path) > 1 else config, path[:-1]):
        if len(row) == count and not all(type(v) in (int, float) for v in row):
            changes[at] = [v for i, v in enumerate(row) if i not in gone]
    return changes


def _lists(config: Any, at: Path) -> Iterator[tuple[Path, Sequence[Any]]]:
    items = config.items() if isinstance(config, Mapping) else ()
    yield from (((*at, key), value) for key, value in items if isinstance(value, (list, tuple)))


# ---- choosing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """What a choice of layers goes by: how much each block is worth, and of what a share is to go."""

    oracle: Oracle
    layers: Sequence[Layers]
    worth: Mapping[str, float]
    of: str
    held: frozenset[str] = frozenset()
    found: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)

    def options(self, asked: float) -> list[Depth]:
        """Choices of layers, each with one layer more than the one before, from none to the first above a share."""
        now = Depth({}, {}, ())
        out = [now]
        while now.share < asked:
            more = [d for layers in self.layers if (d := self._less(now, layers)) is not None]
            if not more:
                break
            below = [d for d in more if d.share <= asked + 1e-9]
            now = min(below or more, key=lambda d: self._rate(d) if below else d.share)
            out.append(now)
        return out

    def _rate(self, depth: Depth) -> float:
        return sum(self.worth.get(b, 0.0) for b in depth.blocks) / max(depth.share, 1e-12)

    def _less(self, depth: Depth, layers: Layers) -> Depth | None:
        """The same without one more layer of every stack, the one that is worth the least."""
        before = depth.gone.get(layers.entry, ())
        picked = []
        for stack in layers.stacks:
            free = [i for i in self.items(stack) if i not in before and self.blocks(i)]
            if not free or len(before) // len(layers.stacks) >= layers.count - 1:
                return None
            picked.append(min(free, key=lambda i: sum(self.worth.get(b, 0.0) for b in self.blocks(i))))
        gone = {**depth.gone, layers.entry: (*before, *picked)}
        numbers_gone = _numbers(gone[layers.entry], layers.stacks[0])
        changes = {**depth.changes, **shorter(self.oracle.constructor.config, layers.entry, numbers_gone)}
        blocks = tuple(b for items in gone.values() for i in items for b in self.blocks(i))
        left = self._left(blocks)
        if left is None or any(inside(t, i) for items in gone.values() for i in items for t in left.parameters):
            return None
        total = dense_cost(CostModel(self.oracle.graph), self.of)
        return Depth(gone, changes, blocks, 1 - dense_cost(CostModel(left), self.of) / total)

    def items(self, stack: str) -> list[str]:
        """The items of a stack that are alike: any of them may go."""
        assert isinstance(self.oracle.base, Snapshot)
        shapes = self.oracle.base.shapes
        count = 1 + max(int(n.removeprefix(f"{stack}.").split(".")[0]) for n in shapes if inside(n, stack))
        made = {f"{stack}.{i}": _inner(shapes, f"{stack}.{i}") for i in range(count)}
        last = made[f"{stack}.{count - 1}"]
        return [item for item, held in made.items() if held == last]

    def blocks(self, item: str) -> tuple[str, ...]:
        """The blocks that make a layer, as far as they may go."""
        if item not in self.found:
            own = [b for b in self.oracle.graph.blocks if b.tensors and all(inside(t, item) for t in b.tensors)]
            names = tuple(b.name for b in own)
            left = None if self.held & set(names) else self._left(names)
            whole = left is not None and not any(inside(t, item) for t in left.parameters)  # nobody else reads it
            self.found[item] = names if whole else ()
        return self.found[item]

    def _left(self, blocks: Sequence[str]) -> ChannelGraph | None:
        try:
            return self.oracle.graph.without(tuple(dict.fromkeys(blocks)))
        except FxPruneError:
            return None


def _inner(shapes: Shapes, item: str) -> dict[str, tuple[int, ...]]:
    return {n.removeprefix(f"{item}."): s for n, s in shapes.items() if inside(n, item)}


def depth_of(oracle: Oracle, plan: Plan) -> Depth:
    """The layers that a plan took out.

    Raises:
        PlanError: they are none that the constructor counts.
    """
    choice, taken = Removal(oracle, layers_of(oracle), {}, plan.of), set(plan.blocks)
    gone: dict[Path, tuple[str, ...]] = {}
    changes: dict[Path, Any] = {}
    for layers in choice.layers:
        items = [i for stack in layers.stacks for i in choice.items(stack)]
        if out := tuple(i for i in items if choice.blocks(i) and set(choice.blocks(i)) <= taken):
            gone[layers.entry] = out
            changes |= shorter(oracle.constructor.config, layers.entry, _numbers(out, layers.stacks[0]))
    if {b for items in gone.values() for i in items for b in choice.blocks(i)} != taken:
        raise PlanError("the plan takes out blocks that the constructor of this model does not count")
    return Depth(gone, changes, plan.blocks)


def _numbers(items: Sequence[str], stack: str) -> list[int]:
    """The numbers of items in a stack."""
    return [int(i.removeprefix(f"{stack}.")) for i in items if inside(i, stack)]


def shallower(oracle: Oracle, depth: Depth) -> Oracle:
    """The oracle of what is left without some layers."""
    assert isinstance(oracle.base, Snapshot)
    constructor = replace(oracle.constructor, config=edited(oracle.constructor.config, depth.changes))
    whole = [(p, v) for p, v in depth.changes.items() if isinstance(v, int)]
    told = {p: (get(oracle.constructor.config, p), v) for p, v in whole}
    left = oracle.graph.without(depth.blocks)
    return Oracle(constructor, left, moved_up(oracle.base.shapes, depth), oracle.graph, depth.blocks, told)


def moved_up(shapes: Shapes, depth: Depth) -> dict[str, str]:
    """Name of a tensor in the shallower model -> in the given one."""
    out: dict[str, str] = {}
    gone = {i for items in depth.gone.values() for i in items}
    stacks = {i.rpartition(".")[0] for i in gone}
    for name in shapes:
        stack = next((s for s in stacks if inside(name, s)), None)
        if stack is None:
            continue
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if f"{stack}.{number}" not in gone:
            above = sum(f"{stack}.{i}" in gone for i in range(int(number)))
            out[f"{stack}.{int(number) - above}.{rest}"] = name
    return out


class Renamed(nn.Module):
    """A shallower model under the names that its tensors have in the given one, for the proof."""

    def __init__(self, made: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        parameters = {name for name, _ in made.named_parameters(remove_duplicate=False)}
        for name, tensor in named_tensors(made):
            owner, _, leaf = names.get(name, name).rpartition(".")
            place: nn.Module = self
            for part in owner.split(".") if owner else ():
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            if name in parameters:
                place.register_parameter(leaf, tensor)  # type: ignore[arg-type]
            else:
                place.register_buffer(leaf, tensor)
        self.add_module("its_own_names", made)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the shallower model computes."""
        return self._modules["its_own_names"](*args, **kwargs)  # type: ignore[misc]
