"""Memory of one forward: weights, and the most that activations take at a time.

Every value lives from the node that makes it to its last use.  What a module was called with lives until the call is
over, for its caller holds it.  Views, and results written into an argument, take no memory of their own.

    memory = sum of weights + max over nodes of sum over the values alive there

Workspaces that kernels allocate and free within an op are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.graph.channels import ChannelGraph
from fxprune.planning.costs.polynomials import Floats, Product, Terms, terms_of


@dataclass(frozen=True)
class Memory:
    """Bytes of a plan: `weights` are terms that add up, `alive[t]` says which of `values` step t needs at once."""

    weights: Terms
    values: Terms
    alive: csr_matrix

    def total(self, removed: Floats) -> float:
        """Bytes when group g loses `removed[g]` channels."""
        return self.weights.total(removed) + self.peak(removed)

    def peak(self, removed: Floats) -> float:
        """Bytes of activations, inputs and outputs where these take most."""
        return float((self.alive @ self.values.each(removed)).max(initial=0.0))


def memory_of(graph: ChannelGraph) -> Memory:
    """The memory of a graph's forward on its example inputs."""
    weights: dict[str, Product] = {}
    owners: dict[int, int] = {}
    products: list[Product] = []
    steps: list[tuple[int, int]] = []
    nodes = list(graph.traced.graph.nodes)
    until = _last_steps(graph, nodes)
    for t, node in enumerate(nodes):
        tensor = graph.traced.tensors.get(node.name) if node.op == "placeholder" else None
        for value, labels in _values(node, graph):
            storage = _storage(value)
            if tensor is not None:
                weights[tensor] = _bytes(value, labels)
                owners[storage] = -1
            elif storage not in owners:
                owners[storage] = len(products)
                products.append(_bytes(value, labels))
                steps.append((t, t))
            if (k := owners[storage]) >= 0:
                steps[k] = (steps[k][0], max(steps[k][1], until[node]))
    return Memory(terms_of(graph, list(weights.values())), terms_of(graph, products), _alive(steps, len(nodes)))


def _storage(value: Tensor) -> int:
    """What tensors that share their memory have in common."""
    try:
        return int(value.untyped_storage()._cdata)
    except NotImplementedError:  # a tensor within torch.vmap
        return id(value)


def _values(node: fx.Node, graph: ChannelGraph) -> Iterator[tuple[Tensor, Any]]:
    """The tensors that a node makes, with their labels."""
    value, labels = node.meta.get("val"), graph.env.get(node)
    if isinstance(value, Tensor):
        yield value, labels if isinstance(labels, tuple) else (None,) * value.dim()
    elif isinstance(value, (tuple, list)):
        for k, v in enumerate(value):
            if isinstance(v, Tensor):
                yield v, labels[k] if isinstance(labels, list) and labels[k] else (None,) * v.dim()


def _bytes(value: Tensor, labels: Any) -> Product:
    fixed = value.element_size()
    for size, axis in zip(value.shape, labels, strict=True):
        fixed *= size if axis is None and isinstance(size, int) else 1  # a size that depends on data counts as one
    return float(fixed), labels


def _last_steps(graph: ChannelGraph, nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """For every node the last step at which its value is held."""
    step = {n: t for t, n in enumerate(nodes)}
    ends = _call_ends(nodes)
    until = dict(step)
    for node in nodes:
        for used in node.all_input_nodes:
            until[used] = max(until[used], step[node], _held(ends[step[node]], step[used]))
    for o in pytree.tree_leaves(graph.traced.outputs):
        if isinstance(o, fx.Node):
            until[o] = len(nodes) - 1
    for node in nodes:
        if node.op == "placeholder":  # the caller of the model holds its inputs
            until[node] = len(nodes) - 1
    return until


def _call_ends(nodes: list[fx.Node]) -> list[list[tuple[int, int]]]:
    """For every step the module calls that it is in, outermost first: their first and last steps."""
    stacks = [tuple(path for path, _ in (n.meta.get("nn_module_stack") or {}).values()) for n in nodes]
    out: list[list[tuple[int, int]]] = [[] for _ in nodes]
    for depth in range(max(map(len, stacks), default=0)):
        start = 0
        for t in range(1, len(nodes) + 1):
            if t == len(nodes) or stacks[t][: depth + 1] != stacks[start][: depth + 1]:
                if len(stacks[start]) > depth:
                    for k in range(start, t):
                        out[k].append((start, t - 1))
                start = t
    return out


def _held(calls: list[tuple[int, int]], made: int) -> int:
    """The end of the outermost call that was given a value made at step `made`."""
    return max((end for start, end in calls if made < start), default=-1)


def _alive(steps: list[tuple[int, int]], n: int) -> csr_matrix:
    """Row t: the values alive at step t; steps that need no more than a neighbour are left out."""
    matrix = np.zeros((n, len(steps)), bool)
    for k, (first, last) in enumerate(steps):
        matrix[first : last + 1, k] = True
    none = np.zeros((1, len(steps)), bool)
    after, before = np.vstack([matrix[1:], none]), np.vstack([none, matrix[:-1]])
    inside_next = (matrix <= after).all(1)
    inside_last = (matrix <= before).all(1) & (matrix != before).any(1)
    return csr_matrix(matrix[~(inside_next | inside_last)].astype(np.float64))
