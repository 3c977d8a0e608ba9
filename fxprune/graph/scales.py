"""Where a factor can go: the weights that, multiplied by it, multiply a value by it and nothing else.

A softmax temperature, or another scale that the model's Python computes from a width, changes where the width does.  It is
undone in the weights that make the scaled value:

    moves (view, chunk, permute)  the same rows of what made it, if no other part of the model reads these
    products (bmm, mul, einsum)   one of the factors
    sums (add, cat)               every term
    linear, conv, affine norms    rows of weight and bias
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from fxprune.graph.rules.op import is_tensor, op_name, shape_of
from fxprune.graph.trace import Traced

Ints: TypeAlias = npt.NDArray[np.int64]
MOVES = frozenset(
    f"aten::{n}"
    for n in """view reshape _unsafe_view flatten unflatten transpose permute contiguous clone chunk split
    split_with_sizes unbind select slice narrow squeeze unsqueeze to _to_copy alias dropout detach swapaxes movedim expand
    t numpy_T mT""".split()
) | {"python::getitem"}
_PASSES = frozenset(f"aten::{n}" for n in "relu leaky_relu neg mean sum avg_pool2d upsample_nearest2d div".split())
_PRODUCTS = frozenset(f"aten::{n}" for n in "mul matmul bmm mm mv einsum _weight_norm".split())
_SUMS = frozenset(f"aten::{n}" for n in "add sub cat".split())
_LAYERS = {"aten::linear": -1, "aten::conv1d": 1, "aten::conv2d": 1, "aten::conv3d": 1}
_NORMS = {"aten::layer_norm": -1, "aten::rms_norm": -1, "aten::group_norm": 1, "aten::batch_norm": 1}
_DEPTH = 32


@dataclass(frozen=True)
class Rows:
    """Positions along the first axis (before pruning) of a parameter; None: all of it."""

    tensor: str
    rows: Ints | None


def foldable(traced: Traced, parameters: Container[str], value: fx.Node, reader: fx.Node) -> list[Rows] | None:
    """The rows of parameters to multiply so that `value`, as `reader` reads it, is multiplied; None where there are none."""
    return _Search(traced, parameters, frozenset(read_nodes(traced))).of(value, reader, _DEPTH)


@dataclass(frozen=True)
class _Search:
    traced: Traced
    parameters: Container[str]
    live: frozenset[fx.Node]

    def of(self, value: Any, reader: fx.Node, depth: int) -> list[Rows] | None:
        if not isinstance(value, fx.Node) or not is_tensor(value) or not depth:
            return None
        maker = value
        while maker.op == "call_function" and op_name(maker.target) in MOVES:
            maker = maker.args[0]  # type: ignore[assignment]
        name = op_name(maker.target) if maker.op == "call_function" else ""
        axis = _LAYERS.get(name, _NORMS.get(name, 0))
        rows = self.alone(maker, axis, value, reader)
        if rows is None:
            return None
        if maker.op == "placeholder":
            return self.parameter(maker, rows)
        if name in _LAYERS or name in _NORMS:
            return self.layer(maker, name, rows, depth)
        return None if not _whole(maker, rows) else self.inner(maker, name, depth - 1)

    def inner(self, node: fx.Node, name: str, depth: int) -> list[Rows] | None:
        """Through an op that is linear in its arguments, or in one of them."""
        operands = _operands(node)
        if name in _PASSES:
            return self.of(operands[0], node, depth)
        if name in _PRODUCTS:
            if name == "aten::_weight_norm":
                operands = operands[1:]
            found = (self.of(n, node, depth) for n in operands)
            return next((f for f in found if f is not None), None)
        if name in _SUMS and len(operands) > 1:
            terms = [self.of(n, node, depth) for n in operands]
            return None if any(t is None for t in terms) else [r for t in terms if t is not None for r in t]
        return None

    def layer(self, node: fx.Node, name: str, rows: Ints, depth: int) -> list[Rows] | None:
        """The rows of weight and bias; of a weight that is computed, what it is computed from."""
        at = {"aten::linear": (1, 2), "aten::group_norm": (2, 3), "aten::layer_norm": (2, 3), "aten::rms_norm": (2,)}
        places = at.get(name, (1, 2))
        given = [node.args[k] if len(node.args) > k else None for k in places]
        if given[0] is None or (name in _NORMS and len(shape_of(given[0])) != 1):
            return None
        out: list[Rows] = []
        for n in given:
            if n is None:
                continue
            if not isinstance(n, fx.Node):
                return None
            if n.op == "placeholder":
                found = self.parameter(n, rows) if self.only(n, node) else None
            else:
                found = self.of(n, node, depth - 1) if _whole(n, rows) else None
            if found is None:
                return None
            out += found
        return out

    def parameter(self, node: fx.Node, rows: Ints) -> list[Rows] | None:
        name = self.traced.tensors.get(node.name)
        twice = list(self.traced.tensors.values()).count(name or "") > 1
        if name not in self.parameters or twice or not node.meta["val"].is_floating_point():
            return None
        return [Rows(str(name), None if _whole(node, rows) else rows)]

    def only(self, node: fx.Node, reader: fx.Node) -> bool:
        return all(n is reader or n not in self.live for n in node.users)

    def alone(self, maker: fx.Node, axis: int, value: fx.Node, reader: fx.Node) -> Ints | None:
        """The positions along `axis` of `maker` that `reader` reads through `value`, if nothing else reads any of them."""
        shape = shape_of(maker)
        if -1 in shape:
            return None
        ids = torch.arange(shape[axis] if shape else 1)
        view = [1] * len(shape)
        if shape:
            view[axis] = -1
        mine: set[int] = set()
        others: set[int] = set()
        for through, user, found in self.readers(maker, ids.view(view).expand(shape)):
            (mine if through is value and user is reader else others).update(torch.unique(found).tolist())
        out: Ints = np.array(sorted(mine), np.int64)
        return None if mine & others or not mine else out

    def readers(self, node: fx.Node, ids: Any) -> Iterator[tuple[fx.Node, fx.Node | None, torch.Tensor]]:
        """Everything that reads a value through moves: the moved value, its reader, and the positions that it reads."""
        if node in self.traced.outputs:
            yield node, None, ids
        for user in node.users:
            if user not in self.live:
                continue
            moves = user.op == "call_function" and op_name(user.target) in MOVES and user.args[0] is node
            if not moves:
                yield node, user, ids if isinstance(ids, torch.Tensor) else torch.cat([i.flatten() for i in ids])
                continue
            args = [ids, *user.args[1:]]
            kwargs = {k: v for k, v in user.kwargs.items() if k not in ("dtype", "device")}
            if op_name(user.target) in ("aten::to", "aten::_to_copy", "aten::dropout"):
                yield from self.readers(user, ids)
            else:
                yield from self.readers(user, user.target(*args, **kwargs))  # type: ignore[operator]


def _whole(node: fx.Node, rows: Ints) -> bool:
    """Whether these are all positions along a value's first axis."""
    return len(rows) == (*shape_of(node), 1)[0]


def _operands(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if is_tensor(n)]


def read_nodes(traced: Traced) -> set[fx.Node]:
    """The nodes whose values an output, or a tensor that is written in place, is made of."""
    read = {o for o in traced.outputs if isinstance(o, fx.Node)}
    for node in reversed(traced.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node in read or (schema is not None and schema.is_mutable):
            read.update((node, *node.all_input_nodes))
    return read
