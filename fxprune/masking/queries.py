"""Where the query of an attention comes from: the rows of a linear layer, with nothing but moves between.

A mask over the query's channels is then one over these rows, which Python's own call of the attention reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from fxprune.graph.rules.op import op_name, shape_of
from fxprune.graph.trace import Traced

_NAMES = """view reshape _unsafe_view flatten unflatten transpose permute contiguous clone chunk split
split_with_sizes unbind select slice squeeze unsqueeze to alias dropout detach swapaxes movedim expand"""
_MOVES = {f"aten::{n}" for n in _NAMES.split()} | {"python::getitem"}


@dataclass(frozen=True)
class QueryRows:
    """Rows (before pruning) of `weight`, and of its bias, whose outputs become a query."""

    weight: str
    rows: npt.NDArray[np.int64]


def query_rows(traced: Traced, attention: str) -> QueryRows | None:
    """The rows behind an attention's query, or None where other ops lie between."""
    nodes = {n.name: n for n in traced.graph.nodes}
    node = nodes[attention].args[0]
    chain: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.op == "call_function" and op_name(node.target) in _MOVES:
        chain.append(node)
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "call_function" or op_name(node.target) != "aten::linear":
        return None
    names = [traced.tensors.get(a.name) if isinstance(a, fx.Node) else None for a in node.args[1:3]]
    if names[0] is None or (len(node.args) > 2 and node.args[2] is not None and names[1] is None):
        return None
    shape = shape_of(node)
    value: Any = torch.arange(shape[-1]).expand(shape)
    env: dict[fx.Node, Any] = {node: value}
    for n in reversed(chain):
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: env[a])
        env[n] = n.target(*args, **kwargs)  # type: ignore[operator]
    last = env[chain[0]] if chain else value
    assert isinstance(last, torch.Tensor)
    return QueryRows(names[0], torch.unique(last).numpy())
