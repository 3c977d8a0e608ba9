"""What a coupling rule sees of a node, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from fxprune.arguments import shown
from fxprune.errors import PluginError
from fxprune.graph.labels import Axis, Freeze, Ints, LabelSpace

Labels: TypeAlias = "tuple[Axis, ...]"
Rule: TypeAlias = "Callable[[Op], Any]"
_RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class NormGroups:
    """A group norm: its node, the labels of its channel axis, and the number of groups."""

    node: str
    axis: Ints
    groups: int


@dataclass(frozen=True)
class Attended:
    """An attention whose 1/sqrt(head_dim) is implicit: its node and the labels of the query's head_dim axis."""

    node: str
    axis: Ints


@dataclass(frozen=True)
class Reduced:
    """A mean, a maximum and the like over channels, which will be taken over those that stay: its node and the axis.

    `exact`: what goes would add nothing (a distance), so that the result means what it meant.
    """

    node: str
    axis: Ints
    exact: bool = False


@dataclass
class Facts:
    """What the rules state beside labels, for masks, cost, constraints and rewriting.

    Attributes:
        reads: node -> (argument node, axis) pairs over which the node contracts; a mask multiplies these.
        against: (node, argument node, axis) of a read -> the (argument node, axis) pairs that it is multiplied with.
        norm_groups: group norms over live channels.
        attended: attentions with an implicit scale.
        statistics: nodes that take a mean, a variance or a norm over live axes.
        reduced: reductions over live axes that are no norm's; those that change what they mean are reported.
        ordered: axes along which a filter slides: their channels have neighbours, and keep their order.
        multiples: axes whose length has to stay a multiple of a number, for a kernel's sake.
        least: axes of which so many positions have to stay, as the largest k of them are asked for.
        settled: whether the nodes looked at are of train mode, where the proofs settle what is drawn at random.
    """

    reads: dict[str, list[tuple[fx.Node, int]]] = field(default_factory=dict)
    against: dict[tuple[str, fx.Node, int], list[tuple[fx.Node, int]]] = field(default_factory=dict)
    norm_groups: list[NormGroups] = field(default_factory=list)
    attended: list[Attended] = field(default_factory=list)
    statistics: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reduced: list[Reduced] = field(default_factory=list)
    ordered: list[Ints] = field(default_factory=list)
    multiples: list[tuple[Ints, int]] = field(default_factory=list)
    least: list[tuple[Ints, int]] = field(default_factory=list)
    settled: bool = False


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a node's value (of a tensor); a size that depends on data is -1."""
    meta = value.meta["val"] if isinstance(value, fx.Node) else value
    return tuple(s if isinstance(s, int) else -1 for s in meta.shape)


def is_tensor(value: Any) -> bool:
    """Whether a node produces one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


class Op:
    """One node as a coupling rule sees it: arguments by schema name, labels of its inputs, and the facts to state.

    `read` is False where nothing reads the node's value (`w[0].numel()` asks for a size only): then it freezes nothing.
    """

    def __init__(
        self, node: fx.Node, env: Mapping[fx.Node, Any], space: LabelSpace, facts: Facts, read: bool = True
    ) -> None:
        self.node, self.env, self.space, self.facts, self.read = node, env, space, facts, read
        self.args = _by_name(node)

    @property
    def name(self) -> str:
        return self.node.name

    def arg(self, name: str, default: Any = None) -> Any:
        """The argument of that schema name, as the graph holds it."""
        return self.args.get(name, default)

    def tensor(self, name: str) -> fx.Node | None:
        """The argument of that name if it is a node that makes a tensor."""
        value = self.args.get(name)
        return value if is_tensor(value) else None

    def labels(self, value: str | fx.Node | None) -> Labels:
        """Labels of a tensor argument, by name or node."""
        node = self.args[value] if isinstance(value, str) else value
        assert isinstance(node, fx.Node)
        out = self.env[node]
        assert isinstance(out, tuple)
        return out

    def shape(self, value: str | fx.Node | None) -> tuple[int, ...]:
        """Static shape of a tensor argument, by name or node."""
        return shape_of(self.args[value] if isinstance(value, str) else value)

    @property
    def out(self) -> Any:
        """The fake value(s) that the node produces."""
        return self.node.meta["val"]

    @property
    def out_shape(self) -> tuple[int, ...]:
        return shape_of(self.out)

    def tie(self, a: Axis, b: Axis) -> Axis:
        """The two axes have equal positions."""
        return self.space.tie(a, b, self.name)

    def freeze(self, axis: Axis, why: str, cause: str = "op") -> None:
        """The positions of the axis cannot change, because of this op."""
        if self.read:
            self.space.freeze(axis, Freeze(cause, self.name, why))

    def freeze_all(self, why: str, cause: str = "op") -> Any:
        """Freeze every axis of every tensor argument; the outputs are frozen too."""
        for n in self.node.all_input_nodes:
            for axis in _flat(self.env.get(n)):
                self.freeze(axis, why, cause)
        return frozen_like(self.node.meta.get("val"))

    def reads(self, argument: fx.Node, axis: int, *against: tuple[Any, int]) -> None:
        """The op sums over this axis of this argument (a mask may multiply it).

        `against` are the arguments and axes that it is multiplied with, position by position, where there are such.
        """
        axis %= len(shape_of(argument))
        if self.read and self.labels(argument)[axis] is not None:
            self.facts.reads.setdefault(self.name, []).append((argument, axis))
            self.facts.against[self.name, argument, axis] = [(n, d % len(shape_of(n))) for n, d in against]


def _flat(labels: Any) -> list[Axis]:
    if labels is None:
        return []
    if isinstance(labels, list):
        return [a for x in labels for a in _flat(x)]
    return list(labels)


def frozen_like(value: Any) -> Any:
    """Frozen labels for a value: a tuple of axes for a tensor, a list of these for several."""
    if isinstance(value, torch.Tensor):
        return (None,) * value.dim()
    if isinstance(value, (tuple, list)):
        return [frozen_like(v) for v in value]
    return None


def _by_name(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return dict(node.kwargs)
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    named.update(node.kwargs)
    return named


def coupling(*names: str) -> Callable[[Rule], Rule]:
    """Register a coupling rule for ops by name, such as `"aten::conv2d"` (all overloads, in-place too).

    The rule gets an `Op` and returns the labels of the output: a tuple with one axis a dimension (a list of such
    tuples for several outputs).  `op.tie(a, b)` makes two axes equal, `op.freeze(axis, why)` forbids pruning one,
    `op.reads(node, axis)` says that the op sums over an axis.

    Raises:
        PluginError: where a name is not of the form `namespace::op`.
    """
    for name in names:
        if type(name) is not str or name.count("::") != 1:
            raise PluginError(f'coupling() wants names like "mylib::my_op", got {shown(name)}')

    def register(rule: Rule) -> Rule:
        for name in names:
            _RULES[name] = rule
        return rule

    return register


def aten(names: str) -> Callable[[Rule], Rule]:
    """`coupling` for a space-separated list of ATen ops."""
    return coupling(*(f"aten::{n}" for n in names.split()))


def op_name(target: Any) -> str:
    """`"aten::add"` for any overload of add or add_."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return f"python::{getattr(target, '__name__', target)}"
    name = str(schema.name)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def rule_for(target: Any) -> Rule | None:
    """The coupling rule of an op, or None.  Ops that PyTorch tags `pointwise` share one."""
    name = op_name(target)
    if (rule := _RULES.get(name)) is not None:
        return rule
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return _RULES["aten::add"]
    return None
