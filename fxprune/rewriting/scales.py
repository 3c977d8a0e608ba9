"""Scales that the model's Python computes from a width keep their value, or are seen to follow it.

`q @ k * int(c) ** -0.5` has another scale once channels are gone, however the number was computed (int, numpy, lists).
So the pruned module is traced too and its numbers are compared with those of the given one, op by op: a scale that
became another is undone in the weights that make what it scales (see `fxprune.graph.scales`).  Where none can (what
is scaled was normalised, as in all of EDM2), the number may follow the width: see `ChannelGraph.following`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxPruneError
from fxprune.graph.channels import ChannelGraph, source_of
from fxprune.graph.labels import Bools
from fxprune.graph.rules.op import is_tensor, op_name
from fxprune.graph.scales import Rows, behind, foldable, read_nodes
from fxprune.graph.trace import Traced, capture, capture_training
from fxprune.rewriting.slicing import Fold, fold_of

_TIMES = {"aten::mul", "aten::div"}
_ALPHA = {"aten::baddbmm": 1, "aten::addmm": 1, "aten::addbmm": 1, "aten::addmv": 1}
_ATTENTION = "aten::scaled_dot_product_attention"
_OTHERS = {f"aten::{n}" for n in ["add", "sub", "rsub", "pow", "lerp", "addcmul", "addcdiv"]}
_COMPUTES = {*_TIMES, *_ALPHA, _ATTENTION, *_OTHERS}  # with numbers that are no sizes, places or switches


@dataclass(frozen=True)
class Number:
    """A number of a node that changes with the plan: where it stands among the arguments, before and after."""

    node: fx.Node
    place: int | str
    old: float
    new: float
    given: Any

    def __str__(self) -> str:
        at = source_of(self.node)
        return (
            f"the number {self.new:.4g} (was {self.old:.4g}) of {op_name(self.node.target)}{f' at {at}' if at else ''}"
        )


@dataclass(frozen=True)
class Scales:
    """What becomes of the numbers that a model computes from widths.

    Attributes:
        folds: factors for weights of the pruned model, which give scales their value back.
        lost: the numbers that no weight gives their value back.
    """

    folds: tuple[Fold, ...]
    lost: tuple[Number, ...]

    @property
    def followed(self) -> dict[str, dict[int | str, Any]]:
        """The lost numbers, by node and place, as `MaskedRun` takes them."""
        out: dict[str, dict[int | str, Any]] = {}
        for n in self.lost:
            out.setdefault(n.node.name, {})[n.place] = n.given
        return out


def scales_of(graph: ChannelGraph, view: ChannelGraph, small: nn.Module, keep: Bools) -> Scales | None:
    """The numbers of the given model beside those of `small`, which a plan made of it.

    Args:
        view: the graph in the mode that is compared.

    Returns:
        None where the two take different paths, so that nothing can be compared.
    """
    before, example = view.traced, view.traced.example
    folds: list[Fold] = []
    lost: list[Number] = []
    try:
        if before.in_training:
            after = capture_training(small, example, graph.traced)
        else:
            after = capture(small, example, before.returned)
        old, new = _calls(before), _calls(after)
    except FxPruneError:
        return None
    if [op_name(n.target) for n in old] != [op_name(n.target) for n in new]:
        return None
    for a, b in zip(old, new, strict=True):
        factor = _changed(a, b, before, after)
        if factor is not None and (rows := _rows(graph, before, a, factor)) is not None:
            folds += [fold_of(graph, keep, (r.tensor,), r.rows, factor) for r in rows]
        else:
            lost += _numbers(a, b, before, after)
    return Scales(tuple(folds), tuple(lost))


def scale_folds(graph: ChannelGraph, small: nn.Module, keep: Bools) -> list[Fold] | None:
    """Factors for the weights of `small` that give every scale of the given model back; None where one cannot be."""
    found = scales_of(graph, graph, small, keep)
    return None if found is None or (found.lost and not graph.follows) else list(found.folds)


def _rows(graph: ChannelGraph, before: Traced, node: fx.Node, factor: float) -> list[Rows] | None:
    """The rows to multiply by a factor in place of what a node scales."""
    if factor <= 0:
        return None
    found = (foldable(before, graph.parameters, n, node) for n in _scaled(node))
    rows = next((f for f in found if f is not None), None)
    if rows is None and op_name(node.target) in _TIMES:
        rows = behind(before, graph.parameters, node)
    return rows


def _numbers(a: fx.Node, b: fx.Node, before: Traced, after: Traced) -> Iterator[Number]:
    """The numbers that differ between two nodes that compute floats."""
    if op_name(a.target) not in _COMPUTES or not a.meta["val"].is_floating_point():
        return
    pairs: list[tuple[int | str, Any, Any]] = [(k, x, y) for k, (x, y) in enumerate(zip(a.args, b.args, strict=False))]
    pairs += [(name, x, b.kwargs.get(name)) for name, x in a.kwargs.items()]
    for place, x, y in pairs:
        old, new = _number(x, before), _number(y, after)
        if old is not None and new is not None and old != new:
            given = _constant(y, after) if isinstance(y, fx.Node) else y
            yield Number(a, place, old, new, given)


def _calls(traced: Traced) -> list[fx.Node]:
    """The calls that make tensors that are read, in order."""
    read = read_nodes(traced)
    return [n for n in traced.graph.nodes if n.op == "call_function" and is_tensor(n) and n in read]


def _scaled(node: fx.Node) -> list[fx.Node]:
    """What the number of a node scales: one of these."""
    tensors = [n for n in node.all_input_nodes if is_tensor(n) and not _single(n)]
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


def _single(node: fx.Node) -> bool:
    """Whether a tensor has one element, whatever the data (a size that hangs on these is no plain integer)."""
    return all(type(n) is int and n == 1 for n in node.meta["val"].shape)


def _number(value: Any, traced: Traced) -> float | None:
    """A number among a node's arguments: a plain one, or a tensor of one element made of constants alone."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not is_tensor(value) or not _single(value):
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
