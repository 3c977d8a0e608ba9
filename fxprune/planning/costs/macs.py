"""Multiply-accumulates of one forward on the example inputs, as sums of products of axis lengths.

    linear, convolutions       every weight once an output position (transposed: once an input position)
    matmul and its kin         the output's elements times the axis that is summed over
    einsum                     pair by pair, in the order that torch contracts them
    lstm, gru, rnn, cells      every weight once a row of the input
    bilinear, grouped_mm       every weight once a row that meets it
    attention                  both products

Element-wise work, norms, sums and copies count as nothing, as in `torch.utils.flop_counter`.  An op without a rule
here that fxprune does not know either is frozen, so that what `flop_counter` finds in it is a constant.  Where it
finds nothing though the op reads parameters, the count is not complete: `uncounted` names it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.graph.rules.op import is_tensor, op_name, rule_for, shape_of
from fxprune.planning.costs.polynomials import Product

Dims: TypeAlias = "tuple[fx.Node, Sequence[int]]"
Rule: TypeAlias = Callable[[fx.Node, dict[str, Any]], Iterator[list[Dims]]]
_RULES: dict[str, Rule] = {}
_OURS = ("aten::", "python::", "torchvision::roi_")  # coupling rules of others may hide any arithmetic
_RELAYED = {"aten::to", "aten::_to_copy", "aten::detach", "aten::alias", "aten::clone", "aten::contiguous"}
_RELAYED |= {"aten::view", "aten::reshape", "aten::permute", "aten::transpose", "aten::t", "aten::unsqueeze"}


def mac_products(graph: ChannelGraph) -> list[Product]:
    """The multiply-accumulates of a whole graph."""
    return [p for node in graph.traced.graph.nodes for p in _products(graph, node)]


def macs_of(graph: ChannelGraph, node: fx.Node, keep: Bools | None = None) -> float:
    """Multiply-accumulates of one node; as it is, or of the components that `keep` tells to stay."""
    keep = graph.keep_all() if keep is None else keep
    lengths = ((f, [graph.kept(a, keep, len(a)) for a in axes if a is not None]) for f, axes in _products(graph, node))
    return sum(f * math.prod(each) for f, each in lengths)


def uncounted(graph: ChannelGraph) -> tuple[str, ...]:
    """Ops that compute with parameters in a way that nobody has told: their names, in order of the alphabet."""
    read = _parameters_in_use(graph)
    return tuple(sorted({op_name(n.target) for n in graph.traced.graph.nodes if _is_opaque(n, read)}))


def _products(graph: ChannelGraph, node: fx.Node) -> list[Product]:
    if node.op != "call_function":
        return []
    if (rule := _RULES.get(op_name(node.target))) is not None:
        return [_product(graph, parts) for parts in rule(node, _arguments(node))]
    return [] if rule_for(node.target) is not None or not (macs := _told(node)) else [(macs, ())]


def _product(graph: ChannelGraph, parts: Sequence[Dims]) -> Product:
    factor, axes = 1.0, []
    for node, dims in parts:
        for d in dims:
            axis = graph.env[node][d]
            axes.append(axis)
            factor *= 1 if axis is not None else max(shape_of(node)[d], 1)  # unknown: depends on data, counts as one
    return factor, axes


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    names = [a.name for a in schema.arguments] if schema is not None else []
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


# ---- ops that nobody has told ------------------------------------------------------------------------------------


def _told(node: fx.Node) -> float:
    """What `torch.utils.flop_counter` finds in a node that fxprune has no rule for; two operations make one."""
    values: Any = tree_map_only(fx.Node, lambda n: n.meta.get("val"), (node.args, node.kwargs))
    modes = [m for v in tree_leaves(values) if (m := getattr(v, "fake_mode", None)) is not None]
    if not modes or not callable(node.target):
        return 0.0
    try:
        with modes[0], FlopCounterMode(display=False) as counter, torch.no_grad():
            node.target(*values[0], **values[1])
    except Exception:  # noqa: BLE001 - an op may want real values; then nothing is known of it
        return 0.0
    return float(counter.get_total_flops()) / 2


def _is_opaque(node: fx.Node, read: frozenset[fx.Node]) -> bool:
    if node.op != "call_function" or (name := op_name(node.target)) in _RULES:
        return False
    if rule_for(node.target) is not None and (name.startswith(_OURS) or _is_pointwise(node.target)):
        return False
    return any(n in read for n in node.all_input_nodes) and not _told(node)


def _is_pointwise(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def _parameters_in_use(graph: ChannelGraph) -> frozenset[fx.Node]:
    """Nodes that are a floating parameter of two axes or more, cast or in another shape."""
    found: set[fx.Node] = set()
    for node in graph.traced.graph.nodes:
        if node.op == "placeholder":
            named = graph.traced.tensors.get(node.name) in graph.parameters
            if named and is_tensor(node) and node.meta["val"].dim() > 1 and node.meta["val"].is_floating_point():
                found.add(node)
        elif node.op == "call_function" and op_name(node.target) in _RELAYED and found & set(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


# ---- rules -------------------------------------------------------------------------------------------------------


def _rule(names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return register


def _dims(node: fx.Node, start: int | None = None, stop: int | None = None) -> Dims:
    return node, range(len(shape_of(node)))[start:stop]


@_rule("aten::linear")
def _linear(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    yield [_dims(args["weight"]), _dims(args["input"], None, -1)]


@_rule("aten::bilinear")
def _bilinear(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    yield [_dims(args["weight"]), _dims(args["input1"], None, -1)]


@_rule(
    "aten::conv1d aten::conv2d aten::conv3d aten::convolution aten::_convolution aten::conv_transpose1d "
    "aten::conv_transpose2d aten::conv_transpose3d torchvision::deform_conv2d aten::deform_conv2d"
)
def _conv(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    weight = args["weight"]
    turned = "transpose" in op_name(node.target) or bool(args.get("transposed"))
    at = args["input"] if turned else node
    n = len(shape_of(at))
    yield [_dims(weight), (at, [d for d in range(n) if d != n - len(shape_of(weight)) + 1])]


@_rule("aten::matmul aten::bmm aten::mm aten::mv aten::dot aten::inner aten::addmm aten::baddbmm aten::addmv")
def _matmul(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    summed = "batch1" in args or "mat1" in args or "mat" in args  # then `self` is what is added
    left = next(args[k] for k in ("batch1", "mat1", "mat") if k in args) if summed else next(iter(args.values()))
    yield [_dims(node), _dims(left, -1)]


@_rule("aten::addbmm")
def _addbmm(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    yield [_dims(args["batch1"]), _dims(args["batch2"], -1)]


@_rule("aten::tensordot")
def _tensordot(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    yield [_dims(node), (args["self"], [int(d) for d in args["dims_self"]])]


@_rule("aten::scaled_dot_product_attention")
def _attention(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    rank = len(shape_of(args["query"]))
    for whole in (args["query"], node):
        yield [_dims(whole), (args["key"], [rank - 2])]


@_rule("aten::_grouped_mm transformers::grouped_mm_fallback")
def _grouped(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    rows, weight = node.args[0], node.args[1]
    assert isinstance(rows, fx.Node)
    assert isinstance(weight, fx.Node)
    yield [_dims(rows, None, -1), _dims(weight, -2)] if len(shape_of(weight)) == 3 else [_dims(node), _dims(rows, -1)]


@_rule("aten::lstm_cell aten::gru_cell aten::rnn_tanh_cell aten::rnn_relu_cell")
def _cell(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    for weight in (args["w_ih"], args["w_hh"]):
        yield [_dims(weight), _dims(args["input"], None, -1)]


@_rule("aten::lstm aten::gru aten::rnn_tanh aten::rnn_relu")
def _recurrent(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    rows = _dims(args["data"] if "data" in args else args["input"], None, -1)
    for weight in args["params"]:
        if len(shape_of(weight)) == 2:
            yield [_dims(weight), rows]


@_rule("aten::einsum")
def _einsum(node: fx.Node, args: dict[str, Any]) -> Iterator[list[Dims]]:
    left, right = _letters(str(args["equation"]), [len(shape_of(n)) for n in args["tensors"]])
    place: dict[str, Dims] = {}
    for term, n in zip(left, args["tensors"], strict=True):
        for d, letter in enumerate(term):
            if letter not in place or shape_of(n)[d] > 1:
                place[letter] = (n, [d])
    for letters in _contractions([set(term) for term in left], set(right), args.get("path")):
        yield [place[letter] for letter in sorted(letters)]


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The terms of an equation and its result, with dots written out and the result where it is left out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    most = max(rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True))
    dots = "".join(map(chr, range(0x1F600, 0x1F600 + most)))

    def written(term: str, rank: int) -> str:
        return term.replace("...", dots[most - (rank - len(term.replace("...", ""))) :])

    whole = [written(t, rank) for t, rank in zip(terms, ranks, strict=True)]
    if not arrow:
        every = "".join(whole)
        right = "".join(dict.fromkeys(c for c in every if every.count(c) == 1 or c in dots))
    return whole, right.replace("...", dots)


def _contractions(terms: list[set[str]], result: set[str], path: Sequence[int] | None) -> Iterator[set[str]]:
    """The letters of every product of two tensors that sums over something.

    Letters that one of the two alone has, and nobody needs later, are summed over before.
    """
    pairs = iter(zip(path[::2], path[1::2], strict=True)) if path else None
    while len(terms) > 1:
        i, j = sorted(next(pairs)) if pairs else (0, 1)
        b, a = terms.pop(j), terms.pop(i)
        later: set[str] = functools.reduce(set.union, terms, result)
        if (a & b) - later:
            yield {c for c in a | b if c in later or (c in a and c in b)}
        terms.insert(len(terms) if pairs else 0, (a | b) & later)
