"""Regions of a captured graph (no_grad, autocast) inlined: one flat graph, whose ops know the autocast they ran under.

Grad mode changes no value, so it is dropped.  Autocast does: every node made under it carries the context, and
`computed` runs it as the model did.
"""

from __future__ import annotations

import contextlib
import operator
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import TraceError

Cast: TypeAlias = "tuple[str, torch.dtype, bool]"  # device type, dtype, whether it is on
_AUTOCAST, _KEY = "wrap_with_autocast", "fxprune_autocast"


def autocast_of(node: fx.Node) -> Cast | None:
    """The autocast that a node ran under; the device's setting at the time of the run where there is none."""
    cast: Cast | None = node.meta.get(_KEY)
    return cast


def computed(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The value of a node for such arguments, under the autocast that it was captured in."""
    cast = autocast_of(node)
    with contextlib.nullcontext() if cast is None else torch.autocast(cast[0], cast[1], cast[2]):
        return node.target(*args, **kwargs)  # type: ignore[operator]


def in_full(node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a statistic, in float32 where autocast would have computed it so."""
    if autocast_of(node) is None:
        return args, kwargs
    low = (torch.bfloat16, torch.float16)
    wide = lambda x: x.float() if isinstance(x, torch.Tensor) and x.dtype in low else x  # noqa: E731
    return pytree.tree_map(wide, (args, kwargs))  # type: ignore[no-any-return]


def flat_graph(module: fx.GraphModule, prefix: str = "") -> tuple[fx.Graph, tuple[Any, ...]]:
    """A copy of the graph with higher-order regions inlined, and its outputs, which stand beside it.

    Args:
        prefix: put before the name of every node.
    """
    graph = fx.Graph()
    return graph, tuple(_copy_into(graph, module, None, None, prefix))


def _region(module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...]] | None:
    """The submodule that a wrap_with_* op calls, with its arguments."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    if not node.target._name.startswith("wrap_with_") and node.target._name not in ("wrap",):
        return None
    for k, a in enumerate(node.args):
        if isinstance(a, fx.Node) and a.op == "get_attr":
            inner = module.get_submodule(str(a.target))
            if isinstance(inner, fx.GraphModule):
                return inner, node.args[k + 1 :]
    return None


def _cast_within(node: fx.Node, outer: Cast | None) -> Cast | None:
    """The autocast inside a region."""
    if getattr(node.target, "_name", "") != _AUTOCAST:
        return outer
    device, dtype, enabled = node.args[:3]
    return (str(device), dtype or torch.get_autocast_dtype(str(device)), bool(enabled))  # type: ignore[return-value]


def _copy_into(
    graph: fx.Graph, module: fx.GraphModule, args: tuple[Any, ...] | None, cast: Cast | None, prefix: str
) -> list[Any]:
    env: dict[fx.Node, Any] = {}
    given = iter(args or ())

    def look(a: Any) -> Any:
        return fx.node.map_arg(a, lambda n: env[n])

    for node in module.graph.nodes:
        if node.op == "placeholder" and args is not None:
            env[node] = next(given)
        elif node.op == "output":
            out = look(node.args[0])
            return list(out) if isinstance(out, (tuple, list)) else [out]
        elif node.op == "get_attr" and isinstance(held := _attribute(module, str(node.target)), nn.Module):
            env[node] = held  # a function that an op of higher order calls
        elif (region := _region(module, node)) is not None:
            env[node] = tuple(_copy_into(graph, region[0], look(region[1]), _cast_within(node, cast), prefix))
        elif node.target is operator.getitem and not isinstance(env.get(node.args[0]), fx.Node):
            env[node] = env[node.args[0]][node.args[1]]
        elif node.op == "get_attr":
            raise TraceError(f"the captured graph holds the constant {node.target}, which fxprune cannot place")
        else:
            env[node] = _copied(graph, node, look, cast, prefix)
    raise AssertionError("a graph without an output")


def _copied(graph: fx.Graph, node: fx.Node, look: Any, cast: Cast | None, prefix: str) -> fx.Node:
    args, kwargs = look(node.args), look(node.kwargs)
    new = graph.create_node(node.op, node.target, args, kwargs, prefix + node.name, node.type)
    new.meta = dict(node.meta)
    if cast is not None and node.op == "call_function":
        new.meta[_KEY] = cast
    return new


def _attribute(module: nn.Module, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module
