"""Scales that the model's Python computes from a width keep their value.

`q @ k * int(c) ** -0.5` has another scale once channels are gone, however the number was computed (int, numpy, lists).
So the pruned module is traced too and its numbers are compared with those of the given one, op by op: a scale that
became another is undone in the weights that make what it scales (see `fxprune.graph.scales`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxPruneError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.graph.rules.op import is_tensor, op_name
from fxprune.graph.scales import behind, foldable, read_nodes
from fxprune.graph.trace import Traced, capture
from fxprune.rewriting.slicing import Fold, fold_of

_TIMES = {"aten::mul", "aten::div"}
_ALPHA = {"aten::baddbmm": 1, "aten::addmm": 1, "aten::addbmm": 1, "aten::addmv": 1}


def scale_folds(graph: ChannelGraph, small: nn.Module, keep: Bools) -> list[Fold] | None:
    """Factors for the weights of `small` that give every scale of the given model back; None where one cannot be."""
    with contextlib.suppress(FxPruneError):
        after = capture(small, graph.traced.example, graph.traced.returned)
        return list(_folds(graph, after, keep))
    return None


class _Lost(FxPruneError):
    """A number changed that no weight can undo."""


def _folds(graph: ChannelGraph, after: Traced, keep: Bools) -> Iterator[Fold]:
    before = graph.traced
    old, new = _calls(before), _calls(after)
    if [op_name(n.target) for n in old] != [op_name(n.target) for n in new]:
        raise _Lost("the pruned module takes another path")
    for a, b in zip(old, new, strict=True):
        factor = _changed(a, b, before, after)
        if factor is None:
            continue
        places = [n for n in _scaled(a) if factor > 0]
        found = (foldable(before, graph.parameters, n, a) for n in places)
        rows = next((f for f in found if f is not None), None)
        if rows is None and factor > 0 and op_name(a.target) in _TIMES:
            rows = behind(before, graph.parameters, a)
        if rows is None:
            raise _Lost(f"no weights make what {a.name} scales")
        for r in rows:
            yield fold_of(graph, keep, (r.tensor,), r.rows, factor)


def _calls(traced: Traced) -> list[fx.Node]:
    """The calls that make tensors that are read, in order."""
    read = read_nodes(traced)
    return [n for n in traced.graph.nodes if n.op == "call_function" and is_tensor(n) and n in read]


def _scaled(node: fx.Node) -> list[fx.Node]:
    """What the number of a node scales: one of these."""
    tensors = [n for n in node.all_input_nodes if is_tensor(n) and n.meta["val"].numel() != 1]
    return tensors[_ALPHA.get(op_name(node.target), 0) :][:2]


def _changed(a: fx.Node, b: fx.Node, before: Traced, after: Traced) -> float | None:
    """What brings the result of a node back to what its number made of it before; None where no number changed."""
    name = op_name(a.target)
    if name in _TIMES and len(a.args) > 1:
        old, new = _number(a.args[1], before), _number(b.args[1], after)
        if old is None and name == "aten::mul":
            old, new = _number(a.args[0], before), _number(b.args[0], after)
        return _ratio(old, new) if name == "aten::mul" else _ratio(new, old)
    if name in _ALPHA:
        return _ratio(_option(a, "alpha", 1.0), _option(b, "alpha", 1.0))
    if name == "aten::scaled_dot_product_attention":
        return _ratio(_option(a, "scale", None), _option(b, "scale", None))
    return None


def _ratio(old: float | None, new: float | None) -> float | None:
    if old is None or new is None or old == new or not new:
        return None
    return old / new


def _option(node: fx.Node, name: str, default: Any) -> Any:
    given: Mapping[str, Any] = node.kwargs
    schema = [x.name for x in node.target._schema.arguments]  # type: ignore[union-attr]
    at = schema.index(name)
    return given.get(name, node.args[at] if len(node.args) > at else default)


def _number(value: Any, traced: Traced) -> float | None:
    """A number among a node's arguments: a plain one, or a tensor of one element made of constants alone."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not is_tensor(value) or value.meta["val"].numel() != 1:
        return None
    with contextlib.suppress(LookupError):
        return float(_constant(value, traced))
    return None


def _constant(node: fx.Node, traced: Traced) -> Tensor:
    """The value of a node.

    Raises:
        LookupError: where it depends on more than constants.
    """
    if node.op == "placeholder":
        return traced.constants[node.name]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _constant(n, traced))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator, no-any-return]
