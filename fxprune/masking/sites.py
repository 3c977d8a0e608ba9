"""Where a model's own Python has to be masked, read off the channel graph.

A channel is gone when nothing reads it.  A reader is either a weight (then the mask multiplies the weight's positions
along the contracted axis), or a call that no weight takes part in, such as q kᵀ (then it multiplies an argument); and
norms take their statistics over what stays.

    WeightSite   a parameter or buffer of a module, the axis, the component of every position
    CallSite     the k-th call of a family of functions inside a module's forward
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.graph.rules.op import op_name
from fxprune.masking.queries import query_rows

# The names under which Python calls the ops that can be call sites.
FAMILIES: dict[str, str] = {
    **{name: name for name in ("linear", "bmm", "mm", "addmm", "baddbmm", "einsum", "group_norm", "layer_norm")},
    **{name: name for name in ("rms_norm", "batch_norm", "scaled_dot_product_attention", "mean", "sum", "var", "std")},
    **{f"conv{t}{k}d": f"conv{t}{k}d" for t in ("", "_transpose") for k in (1, 2, 3)},
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__"), "matmul"),
    **dict.fromkeys(("norm", "linalg_vector_norm", "vector_norm", "normalize"), "norm"),
    **{name: name for name in ("amax", "amin", "max", "min", "logsumexp", "prod", "pairwise_distance", "vdot", "dot")},
    **{name: name for name in ("aminmax", "topk", "softmax", "log_softmax", "fused_moving_avg_obs_fake_quant")},
    **{name: name for name in ("var_mean", "std_mean", "cdist", "cosine_similarity")},
}
_VIEWS = frozenset(
    f"aten::{n}"
    for n in [
        "view",
        "reshape",
        "transpose",
        "t",
        "permute",
        "slice",
        "select",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "contiguous",
        "clone",
        "to",
        "_to_copy",
        "unsqueeze",
        "squeeze",
        "expand",
        "alias",
        "detach",
        "flatten",
        "unflatten",
        "narrow",
        "numpy_T",
        "mT",
        "T",
    ]
)


@dataclass(frozen=True)
class WeightSite:
    """Positions of `tensor` (a name in the module `path`) along `axis`, each with its component; 0 where none reads."""

    path: str
    tensor: str
    axis: int
    components: Ints


@dataclass(frozen=True)
class CallSite:
    """The `ordinal`-th call of a family in one run of the module's forward.

    `argument` is the position of the masked argument, `axes` its axes with the component of every position; a
    `statistic` takes its means over them, another call reads the argument times the mask.
    """

    path: str
    family: str
    ordinal: int
    argument: int
    axes: tuple[tuple[int, Ints], ...]
    statistic: bool


def weight_sites(graph: ChannelGraph, model: nn.Module) -> list[WeightSite]:
    """One site for every weight axis that a contraction reads, and for the rows of a linear layer that make a query."""
    found: dict[tuple[str, str, int], Ints] = {}
    for view in graph.modes:
        for node, argument, axis in _reads(view):
            masked = [
                (view.traced.tensors[holder.name], d, _positions(view, holder, d, node, argument, axis))
                for holder, d in _weights(view, node, argument, axis)
            ]
            for tensor, d, where in masked or _query(view, node):
                for path, leaf in _holders(model, tensor, node.meta["fxprune_module"]):
                    key = path, leaf, d
                    old = found.get(key)
                    found[key] = where if old is None else np.where(old == 0, where, old)
    return [WeightSite(path, leaf, d, c) for (path, leaf, d), c in found.items() if c.any()]


def call_sites(graph: ChannelGraph) -> list[CallSite]:
    """One site for every contraction without a weight of its own, and for every statistic over live axes.

    Modules that only train mode calls have theirs, too; for the others the calls of eval mode count.
    """
    first, *others = [_call_sites(view) for view in graph.modes]
    known = {n.meta["fxprune_module"] for n in graph.traced.graph.nodes}
    return [*first, *(site for sites in others for site in sites if site.path not in known)]


def _call_sites(graph: ChannelGraph) -> list[CallSite]:
    wanted: dict[fx.Node, list[tuple[int, tuple[tuple[int, Ints], ...], bool]]] = {}
    for node, argument, axis in _reads(graph):
        if argument.op != "placeholder" and not _weights(graph, node, argument, axis) and not _query(graph, node):
            read = (axis, graph.component[graph.env[argument][axis]])
            wanted.setdefault(node, []).append((_argument(node, argument), (read,), False))
    for node in graph.traced.graph.nodes:
        if dims := graph.facts.statistics.get(node.name):
            source = node.all_input_nodes[0]
            axes = [(d, graph.env[source][d]) for d in dims]
            live = tuple((d, graph.component[a]) for d, a in axes if a is not None and graph.component[a].any())
            if live:
                wanted[node] = [(_argument(node, source), live, True)]
    return [
        CallSite(node.meta["fxprune_module"], family, ordinal, *site)
        for node, family, ordinal in _ordinals(graph, {n.meta["fxprune_module"] for n in wanted})
        for site in wanted.get(node, ())
    ]


def _reads(graph: ChannelGraph) -> Iterator[tuple[fx.Node, fx.Node, int]]:
    """(node, argument, axis) of every contraction over an axis that can be pruned."""
    for node in graph.traced.graph.nodes:
        for argument, axis in graph.facts.reads.get(node.name, ()):
            if graph.component[graph.env[argument][axis]].any():
                yield node, argument, axis


def _weights(graph: ChannelGraph, node: fx.Node, argument: fx.Node, axis: int) -> list[tuple[fx.Node, int]]:
    """Parameters (as placeholders, with the axis) that hold the weights of a read; none if one of them is computed."""
    operands = [(argument, axis)] if argument.op == "placeholder" else graph.facts.against[node.name, argument, axis]
    out = []
    for n, d in operands:
        labels = graph.env[n][d]
        while n.op == "call_function" and (op_name(n.target) in _VIEWS or _picks(n)):
            n = n.all_input_nodes[0]
        if n.op != "placeholder" or n.name not in graph.traced.tensors or labels is None:
            return []
        own = [k for k, a in enumerate(graph.env[n]) if a is not None and np.isin(labels, a).all()]
        if len(own) != 1:
            return []
        out.append((n, own[0]))
    return out


def _query(graph: ChannelGraph, node: fx.Node) -> list[tuple[str, int, Ints]]:
    """(weight, axis, components) of the rows that make an attention's query, if a layer does; its bias has the same."""
    if op_name(node.target) != "aten::scaled_dot_product_attention":
        return []
    source = query_rows(graph.traced, node.name)
    labels = None if source is None else graph.tensors[source.weight][0]
    if source is None or labels is None:
        return []
    rows = np.isin(np.arange(len(labels)), source.rows)
    return [(source.weight, 0, np.where(rows, graph.component[labels], 0))]


def _picks(node: fx.Node) -> bool:
    return op_name(node.target) == "python::getitem"


def _positions(graph: ChannelGraph, holder: fx.Node, d: int, node: fx.Node, argument: fx.Node, axis: int) -> Ints:
    """Component of every position of the weight's axis, 0 for those that this node does not read."""
    labels = graph.env[holder][d]
    pairs = graph.facts.against[node.name, argument, axis] if argument.op != "placeholder" else [(argument, axis)]
    read = np.concatenate([graph.env[n][k] for n, k in pairs if graph.env[n][k] is not None])
    return np.where(np.isin(labels, read), graph.component[labels], 0)


def _holders(model: nn.Module, tensor: str, path: str) -> list[tuple[str, str]]:
    """(module, name) pairs that hold a tensor: the module that issued the op if it does, else all."""
    target = {**dict(model.named_buffers()), **dict(model.named_parameters())}[tensor]
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names = [n.rpartition(".") for n, t in named if t is target]
    pairs = [(owner, leaf) for owner, _, leaf in names]
    return [p for p in pairs if p[0] == path] or pairs


def _argument(node: fx.Node, argument: fx.Node) -> int:
    """Position of an argument among a node's tensors (those of an einsum stand in a list)."""
    flat = [a for a in node.args if isinstance(a, (fx.Node, list, tuple))]
    if op_name(node.target) == "aten::einsum":
        flat = list(node.args[1])  # type: ignore[arg-type]
    return next(i for i, a in enumerate(flat) if a is argument)


def _ordinals(graph: ChannelGraph, paths: set[str]) -> Iterator[tuple[fx.Node, str, int]]:
    """Every node of a family in the first run of the modules at `paths`, with its number among its kind there.

    What a module's children call counts for the module too, unless they are in `paths` themselves.
    """
    seen: Counter[tuple[str, str]] = Counter()
    first: dict[str, str] = {}
    for node in graph.traced.graph.nodes:
        if node.op != "call_function":
            continue
        family = FAMILIES.get(op_name(node.target).removeprefix("aten::"))
        path, run = _innermost(node, paths)
        if family is None or path not in paths or first.setdefault(path, run) != run:
            continue
        yield node, family, seen[path, family]
        seen[path, family] += 1


def _innermost(node: fx.Node, paths: set[str]) -> tuple[str, str]:
    """The innermost module of `paths` that a node was issued in, and which run of it."""
    return next(((path, run) for path, run in module_runs(node) if path in paths), (node.meta["fxprune_module"], ""))


def outputs_of(nodes: Iterable[fx.Node], ends: Iterable[Any]) -> dict[str, fx.Node]:
    """By path the value of every module that runs once and gives one.

    Args:
        nodes: all of a graph.
        ends: what the graph gives.
    """
    inside: dict[str, set[fx.Node]] = defaultdict(set)
    runs: dict[str, set[str]] = defaultdict(set)
    for node in nodes:
        for path, run in module_runs(node):
            inside[path].add(node)
            runs[path].add(run)
    last = {o for o in ends if isinstance(o, fx.Node)}
    given = {path: [n for n in own if n in last or any(u not in own for u in n.users)] for path, own in inside.items()}
    return {path: found[0] for path, found in given.items() if path and len(found) == 1 and len(runs[path]) == 1}


def module_runs(node: fx.Node) -> list[tuple[str, str]]:
    """The modules that a node was issued in, innermost first, and which run of each."""
    stack = list((node.meta.get("nn_module_stack") or {}).items())
    own = node.meta["fxprune_module"]
    root = stack[-1][1][0].removesuffix(own).removesuffix(".") if stack else ""
    return [(path.removeprefix(root).removeprefix("."), run) for run, (path, _) in reversed(stack)]
