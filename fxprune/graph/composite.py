"""Ops without a coupling rule that PyTorch itself puts together from others: those others stand in their place.

`torch.multiply`, `torch.vstack` and `F.l1_loss` are captured whole.  Their parts (`mul`, `cat`, `sub`) have rules, and
what masks, counts and rewrites a graph knows them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.graph.regions import autocast_of
from fxprune.graph.rules import rule_for
from fxprune.graph.rules.op import op_name

Call: TypeAlias = "tuple[Any, tuple[Any, ...], dict[str, Any], Any]"  # op, arguments, keyword arguments, result
_SAME = {"aten::linalg_matmul": torch.ops.aten.matmul.default, "aten::special_softmax": torch.ops.aten.softmax.int}
_KEPT = ("nn_module_stack", "stack_trace", "custom")  # of a node's notes: what its parts have in common
_PLACES = ("dim", "dims", "dim0", "dim1", "axis", "ord", "p", "reduction", "alpha", "exponent")  # integers, no sizes


@dataclass
class _Parts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What one op calls, in order, down to ops that have rules."""

    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made_of = _parts_of(func) if rule_for(func) is None else None
        if made_of is not None:
            with self:
                return made_of(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if func.namespace != "prim":  # asks where a tensor lies
            self.calls.append((func, args, kwargs or {}, out))
        return out


def expand(graph: fx.Graph) -> None:
    """Put the parts of each such op in its place; one whose parts have no rules, or sizes of their own, stays whole."""
    for node in list(graph.nodes):
        if node.op == "call_function" and rule_for(node.target) is None:
            if (same := _SAME.get(op_name(node.target))) is not None:
                node.target = same
            elif (made_of := _parts_of(node.target)) is not None and _replaceable(node):
                calls, out = _calls(node, made_of)
                if out is not None:
                    _inline(graph, node, calls, out)


def _replaceable(node: fx.Node) -> bool:
    """Whether what reads the node reads tensors, and the parts would run as the op did."""
    single = isinstance(node.meta.get("val"), torch.Tensor)
    return autocast_of(node) is None and (single or all(n.target is operator.getitem for n in node.users))


def _parts_of(target: Any) -> Callable[..., Any] | None:
    """What computes an op by other ops: its only implementation, or the one that compilers take."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    if torch._C._dispatch_has_kernel_for_dispatch_key(str(target._name), "CompositeImplicitAutograd"):
        return target.decompose
    return decomposition_table.get(target)


def _calls(node: fx.Node, made_of: Callable[..., Any]) -> tuple[list[Call], Any]:
    """The parts of an op on the values that its node was captured with, or none, and what comes of them."""
    value = lambda x: x.meta["val"] if isinstance(x, fx.Node) else x  # noqa: E731
    args, kwargs = pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
    parts = _Parts()
    try:
        with torch.no_grad(), parts:
            out = made_of(*args, **kwargs)
    except Exception:  # noqa: BLE001 - then it stays whole, and holds what it touches
        return [], None
    known = all(rule_for(func) is not None and not _sized(func, a, k) for func, a, k, _ in parts.calls)
    made = {id(x) for x in pytree.tree_leaves([args, kwargs, *(call[-1] for call in parts.calls)])}
    whole = all(id(x) in made for x in pytree.tree_leaves(out))
    return (parts.calls, out) if known and whole else ([], None)


def _sized(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an argument may be a length, which would have to follow a cut."""
    named = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
    leaves = [x for n, v in named.items() if n not in _PLACES for x in pytree.tree_leaves(v)]
    return any(type(x) is int and x > 1 for x in leaves)


def _inline(graph: fx.Graph, node: fx.Node, calls: list[Call], out: Any) -> None:
    """The parts before the node, which becomes what they end in: whoever reads it goes on doing so."""
    given = pytree.tree_leaves((node.args, node.kwargs))
    made = {id(n.meta["val"]): n for n in given if isinstance(n, fx.Node)}
    ends = [out] if isinstance(out, torch.Tensor) else list(out or ())
    of = lambda x: made[id(x)] if isinstance(x, torch.Tensor) else x  # noqa: E731
    notes = {k: node.meta[k] for k in _KEPT if k in node.meta}
    with graph.inserting_before(node):
        for func, args, kwargs, value in calls:
            args, kwargs = pytree.tree_map(of, (args, kwargs))
            part = graph.create_node("call_function", func, tuple(args), kwargs, f"{node.name}_part")
            part.meta = {"val": value, **notes}
            made[id(value)] = part
            for at, piece in enumerate(value if isinstance(value, (tuple, list)) else ()):
                made[id(piece)] = graph.create_node("call_function", operator.getitem, (part, at))
                made[id(piece)].meta = {"val": piece, **notes}
    readers = [node] if isinstance(out, torch.Tensor) else list(node.users)
    for reader in readers:
        place: Any = 0 if reader is node else reader.args[1]
        reader.target, reader.args, reader.kwargs = torch.ops.aten.alias.default, (made[id(ends[place])],), {}
    if reader is not node:
        graph.erase_node(node)
