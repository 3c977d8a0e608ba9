"""Where a factor can go: the weights that, multiplied by it, multiply a value by it and change nothing else.

A softmax temperature, or another scale that the model's Python computes from a width, changes where the width does.  It
is undone in weights behind the scaled value.  Two steps:

    candidates   back from the value: a layer's rows, a whole parameter; one factor of a product, every term of a sum
    proof        forward from there: the degree in which every value is homogeneous in these weights; the value must
                 have degree one, and wherever it is not read as the scaled value nothing may depend on them
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.graph.rules.op import is_tensor, op_name, shape_of
from fxprune.graph.trace import Traced

Ints: TypeAlias = npt.NDArray[np.int64]
Rowed: TypeAlias = "dict[fx.Node, set[int]]"  # a layer or parameter -> positions of its channel axis


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{n}" for n in names.split())


_MOVES = _aten(
    "view reshape _unsafe_view flatten unflatten transpose permute contiguous clone chunk split split_with_sizes "
    "unbind select slice narrow squeeze unsqueeze swapaxes movedim expand t numpy_T mT tensor_split"
) | {"python::getitem"}
_VIEWS = _aten("view reshape _unsafe_view")
_STILL = _aten("to _to_copy alias dropout detach type_as float half double")  # moves that leave positions as they are
_PASSES = _aten("relu leaky_relu neg abs mean sum amax avg_pool2d adaptive_avg_pool2d upsample_nearest2d norm")
_PASSES |= _aten("linalg_vector_norm repeat repeat_interleave")
_PRODUCTS = _aten("mul matmul bmm mm mv einsum")
_SUMS = _aten("add sub cat stack where maximum")
_LAYERS = {"aten::linear": -1, "aten::conv1d": 1, "aten::conv2d": 1, "aten::conv3d": 1}
_NORMS = {"aten::layer_norm": -1, "aten::rms_norm": -1, "aten::group_norm": 1, "aten::batch_norm": 1}
_WEIGHTS = {"aten::group_norm": (2, 3), "aten::layer_norm": (2, 3), "aten::rms_norm": (2,)}
_DEPTH = 48
_WAYS = 4  # places tried for one term of a sum


@dataclass(frozen=True)
class Rows:
    """Positions along the first axis (before pruning) of a parameter; None: all of it."""

    tensor: str
    rows: Ints | None


def foldable(
    traced: Traced, parameters: Container[str], value: Any, reader: fx.Node, also: Collection[fx.Node] = ()
) -> list[Rows] | None:
    """The rows of parameters to multiply so that `value`, as `reader` reads it, is multiplied; None: there are none.

    Nodes `also` want their first argument multiplied as the reader does: two attentions may share a query.
    """
    live = frozenset(read_nodes(traced))
    readers = {**{n: n.args[0] for n in also}, reader: value}
    for places in _candidates(value, _DEPTH):
        rows = [_rows(traced, parameters, live, node, at) for node, at in places.items()]
        if all(r is not None for r in rows) and _alone(traced, live, places, readers, reader):
            return [one for r in rows if r is not None for one in r]
    return None


def behind(traced: Traced, parameters: Container[str], scaled: fx.Node) -> list[Rows] | None:
    """The weights of the layers that read what is made of `scaled`, where it reaches them all by its degree alone.

    Multiplying these does what multiplying `scaled` would; None: something else depends on it, or not in that degree.
    """
    live = read_nodes(traced)
    weights: set[fx.Node] = set()
    todo, seen = [scaled], {scaled}
    while todo:
        node = todo.pop()
        for user in (u for u in node.users if u in live and u not in seen):
            if _name(user) in _LAYERS and user.args[0] is node and isinstance(user.args[1], fx.Node):
                weights.add(user.args[1])
            else:
                seen.add(user)
                todo.append(user)
    names = [traced.tensors.get(w.name, "") for w in weights]
    tied = list(traced.tensors.values())
    if not names or any(n not in parameters or tied.count(n) > 1 for n in names):
        return None
    degree: dict[fx.Node, Any] = {}
    try:
        for node in traced.graph.nodes:
            if node is scaled or node.op == "placeholder":
                degree[node] = 1 if node is scaled else -1 if node in weights else 0
            elif node in live:
                degree[node] = _degree(node, degree)
    except _Mixed:
        return None
    return [Rows(n, None) for n in names] if all(degree.get(o, 0) == 0 for o in traced.outputs) else None


# ---- candidates -------------------------------------------------------------------------------------------------


def _candidates(value: Any, depth: int) -> Iterator[Rowed]:
    """Layers and parameters that a value may be linear in, together."""
    chain: list[fx.Node] = []
    while isinstance(value, fx.Node) and _name(value) in _MOVES | _STILL:
        chain.append(value)
        value = value.args[0]
    if not isinstance(value, fx.Node) or not is_tensor(value) or not depth:
        return
    name = _name(value)
    if name in _LAYERS and len(shape_of(value.args[1])) < 2:
        return  # a weight without rows
    if value.op == "placeholder" or name in _LAYERS or name in _NORMS:
        if (ids := _positions(value, name)) is not None:
            for n in reversed(chain):
                ids = _moved(n, ids)
            yield {value: _present(ids)}
        if name in _LAYERS and isinstance(weight := value.args[1], fx.Node) and weight.op != "placeholder":
            yield from _with_bias(value, weight, depth - 1)
        return
    operands = [n for n in value.all_input_nodes if is_tensor(n)]
    if name == "aten::_weight_norm":
        operands = operands[1:]
    if name in _SUMS:
        terms = [list(itertools.islice(_candidates(n, depth - 1), _WAYS)) for n in operands]
        for together in itertools.islice(itertools.product(*terms), _WAYS**2):
            joint: Rowed = {}
            for node, at in (place for term in together for place in term.items()):
                joint.setdefault(node, set()).update(at)
            yield joint
    elif name in _PASSES | _PRODUCTS | {"aten::div", "aten::_weight_norm"}:
        for n in operands[:1] if name not in _PRODUCTS else operands:
            yield from _candidates(n, depth - 1)


def _with_bias(layer: fx.Node, weight: fx.Node, depth: int) -> Iterator[Rowed]:
    """What a weight is computed from, each with what the bias is: attention layers hold both in parts of one tensor."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    also = {} if bias is None else next(_candidates(bias, depth), {})
    for rows in _candidates(weight, depth):
        yield {n: rows.get(n, set()) | also.get(n, set()) for n in (*rows, *also)}


def _name(node: fx.Node) -> str:
    return op_name(node.target) if node.op == "call_function" else ""


def _positions(node: fx.Node, name: str) -> Tensor | None:
    """The position along its channel axis of every element of a layer's output; of a parameter, along its first."""
    shape = shape_of(node)
    if -1 in shape:
        return None
    if not shape:
        return torch.zeros((), dtype=torch.int64)
    axis = _LAYERS.get(name, _NORMS.get(name, 0))
    view = [1] * len(shape)
    view[axis] = -1
    return torch.arange(shape[axis]).view(view).expand(shape)


def _moved(node: fx.Node, ids: Any) -> Any:
    if _name(node) in _STILL:
        return ids
    if _name(node) in _VIEWS:  # the ids need not lie in memory as the values do
        return ids.reshape(shape_of(node))
    return node.target(ids, *node.args[1:], **node.kwargs)  # type: ignore[operator]


def _rows(
    traced: Traced, parameters: Container[str], live: frozenset[fx.Node], node: fx.Node, at: set[int]
) -> list[Rows] | None:
    """The parameters behind a place; None where they are read elsewhere too, or computed."""
    found: list[Any] = [node]
    if node.op != "placeholder":
        name = _name(node)
        given = [node.args[k] for k in _WEIGHTS.get(name, (1, 2)) if len(node.args) > k]
        found = [n for n in given if n is not None]
        if not found or given[0] is None or (name in _NORMS and len(shape_of(found[0])) != 1):
            return None
    out = []
    for n in found:
        tensor = traced.tensors.get(n.name) if isinstance(n, fx.Node) else None
        if tensor is None or tensor not in parameters or list(traced.tensors.values()).count(tensor) > 1:
            return None
        if n is not node and any(u is not node and u in live for u in n.users):
            return None
        whole = len(at) == (*shape_of(n), 1)[0]
        out.append(Rows(tensor, None if whole else np.array(sorted(at), np.int64)))
    return out


# ---- proof ------------------------------------------------------------------------------------------------------


class _Mixed(Exception):
    """A value that is no homogeneous function of the weights."""


def _alone(
    traced: Traced, live: frozenset[fx.Node], places: Rowed, readers: Mapping[fx.Node, Any], first: fx.Node
) -> bool:
    """Whether multiplying these places multiplies what the first reader reads, and nothing but readers depends on them.

    A degree is an integer, or the positions of a layer's output of which only some are multiplied.
    """
    degree: dict[fx.Node, Any] = {}  # of those that have one: most of a network depends on none of the places
    try:
        for node in traced.graph.nodes:
            if node in places:
                made = _settled(_positions(node, _name(node)), places[node])
            elif node not in live or degree.keys().isdisjoint(node.all_input_nodes):
                made = 0
            else:
                known, value = degree, readers.get(node)
                if value is not None and degree.get(value) == 1 and _times_read(node, value) == 1:
                    known = {**degree, value: 0}
                elif node is first:
                    return False
                made = _degree(node, known)
            if made != 0:
                degree[node] = made
    except _Mixed:
        return False
    return readers[first] in degree and degree.keys().isdisjoint(o for o in traced.outputs if isinstance(o, fx.Node))


def _present(ids: Tensor) -> set[int]:
    """The positions that occur: a count, since sorting as many as there are elements takes longer than all the rest."""
    return set(torch.bincount(ids.flatten()).nonzero().flatten().tolist())


def _times_read(reader: fx.Node, value: fx.Node) -> int:
    """How many of a node's arguments a value is: where it is query and key, a factor of one is not that of both."""
    return sum(x is value for x in pytree.tree_leaves((reader.args, reader.kwargs)))


def _settled(ids: Any, at: set[int]) -> Any:
    """1 or 0 where all or none of the positions are multiplied, else the positions with what is multiplied of them."""
    if isinstance(ids, (list, tuple)):
        return [_settled(i, at) for i in ids]
    have = _present(ids)
    return 1 if have <= at else 0 if not have & at else (ids, at)


def _degree(node: fx.Node, degree: Mapping[fx.Node, Any]) -> Any:
    name = _name(node)
    first = degree.get(node.args[0], 0) if node.args and isinstance(node.args[0], fx.Node) else 0
    if name == "python::getitem" and isinstance(first, list):
        return first[node.args[1]]  # type: ignore[index]
    if name in _MOVES | _STILL:
        if isinstance(first, tuple):
            return _settled(_moved(node, first[0]), first[1])
        return [first] * len(node.meta["val"]) if isinstance(node.meta["val"], (list, tuple)) else first
    given = [degree.get(n, 0) for n in node.all_input_nodes]
    if all(isinstance(d, int) and d == 0 for d in given):
        return 0
    if not all(isinstance(d, int) for d in given):
        raise _Mixed
    return _of_op(node, name, first, given)


def _of_op(node: fx.Node, name: str, first: int, given: Sequence[int]) -> int:
    """The degree of an op's result, given those of its tensors (not all zero)."""
    if name in _PASSES and len(given) == 1:
        return first
    if name in _PRODUCTS or name == "aten::_weight_norm":
        return given[1] if name == "aten::_weight_norm" else sum(given)
    if name == "aten::div":
        return first - (given[1] if len(given) > 1 else 0)
    if name in _SUMS and len(set(given)) == 1 and len(given) > 1:
        return given[0]
    if name in _LAYERS:
        made = given[0] + given[1]
        if len(given) == 2 or given[2] == made:
            return made
    if name == "aten::scaled_dot_product_attention" and not any(given[:2]) and not any(given[3:]):
        return given[2]
    raise _Mixed


def read_nodes(traced: Traced) -> set[fx.Node]:
    """The nodes whose values an output, or a tensor that is written in place, is made of."""
    read = {o for o in traced.outputs if isinstance(o, fx.Node)}
    for node in reversed(traced.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node in read or (schema is not None and schema.is_mutable):
            read.update((node, *node.all_input_nodes))
    return read
