"""Our groups in the form that Torch-Pruning's importances take.

A group becomes a list of (dependency, idxs) with root_idxs beside them, the layer that makes the channels first:

    slice of                                  pruning function ("handler")
    conv or linear weight, the output's axis  prune_conv_out_channels, prune_linear_out_channels
    conv or linear weight, the input's axis   prune_conv_in_channels, prune_linear_in_channels
    norm, PReLU, embedding, depthwise conv    that of their kind
    any other parameter                       prune_parameter_out_channels, with the parameter as the layer
    any other buffer                          none: it is left out
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from fxprune.graph.groups import Group, Slice
from fxprune.graph.labels import Ints

Holders: TypeAlias = dict[str, list[tuple[nn.Module, str]]]
_LAYER_TENSORS = {"weight", "bias", "running_mean", "running_var"}


def present(model: nn.Module, held: Holders, group: Group) -> tuple[Any, int, list[str]]:
    """A group as Torch-Pruning has it, how many positions make a channel, and the tensors that no layer stands for.

    Torch-Pruning scores the positions of its root layer: here channel · width, ..., (channel + 1) · width − 1.

    Args:
        held: from `holders(model)`.
    """
    from torch_pruning.dependency import Dependency
    from torch_pruning.dependency import Group as PeerGroup
    from torch_pruning.dependency.node import Node

    items, odd = _items(model, held, group)
    made, width = PeerGroup(), items[0].positions.shape[1] if items else 1
    for item in items:
        root, node = (Node(i.layer, None, i.name) for i in (items[0], item))
        node.pruning_dim = item.axis
        idxs, root_idxs = _aligned(item.positions, width)
        made.add_dep(Dependency(item.handler, item.handler, source=root, target=node), idxs)
        made[-1].root_idxs = root_idxs
    return made, width, odd


def holders(model: nn.Module) -> Holders:
    """Tensor name -> the modules that hold it (a tied weight has several), each with its own name for it."""
    names = {id(t): n for n, t in (*model.named_buffers(), *model.named_parameters())}
    out = defaultdict(list)
    for module in model.modules():
        for k, t in (*module._buffers.items(), *module._parameters.items()):
            if t is not None:
                out[names[id(t)]].append((module, k))
    return dict(out)


@dataclass(frozen=True)
class _Item:
    """A layer, how it is pruned, and the positions (channels, m) that go with each channel."""

    layer: Any
    name: str
    handler: Any
    axis: int
    positions: Ints


def _items(model: nn.Module, held: Holders, group: Group) -> tuple[list[_Item], list[str]]:
    """Every layer of a group, once for each way in which it is pruned, and what the built-in importances pass over."""
    from torch_pruning import ops
    from torch_pruning.pruner import function

    box, items, odd = function.PrunerBox, list[_Item](), list[str]()
    for s in group.slices:
        found: list[tuple[Any, Any]] = [(m, h) for m, k in held[s.tensor] if (h := _handler(m, k, s)) is not None]
        if not found or isinstance(found[0][0], nn.Embedding):
            odd.append(s.tensor)
        parameter = getattr(*held[s.tensor][0])
        if not found and isinstance(parameter, nn.Parameter):
            found = [(parameter, box[ops.OPTYPE.PARAMETER].prune_out_channels)]
        for layer, handler in found:
            if not any(i.layer is layer and i.handler == handler for i in items):
                name = s.tensor if layer is parameter else s.tensor.rpartition(".")[0]
                items.append(_Item(layer, name, handler, s.axis, _positions(layer, s, handler)))
    makers = [box[kind].prune_out_channels for kind in (ops.OPTYPE.CONV, ops.OPTYPE.LINEAR)]
    return sorted(items, key=lambda i: i.handler not in makers), odd


def _handler(module: nn.Module, attribute: str, s: Slice) -> Any:
    """The pruning function for one axis of a layer's tensor; None where Torch-Pruning has none."""
    from torch_pruning import ops
    from torch_pruning.pruner import function

    kind = ops.module2type(module)
    pruner = function.PrunerBox.get(kind)
    if pruner is None or attribute not in _LAYER_TENSORS:
        return None
    if kind in (ops.OPTYPE.CONV, ops.OPTYPE.LINEAR) and attribute == "weight":
        makes = 1 if getattr(module, "transposed", False) else 0
        return pruner.prune_out_channels if s.axis == makes else pruner.prune_in_channels
    axis = 1 if kind == ops.OPTYPE.EMBED else 0
    whole = kind != ops.OPTYPE.LN or getattr(module, attribute).dim() == 1
    return pruner.prune_out_channels if s.axis == axis and whole else None


def _positions(layer: Any, s: Slice, handler: Any) -> Ints:
    """Positions among all of a layer's channels: a grouped convolution's weight has those of one group only."""
    from torch_pruning.pruner import function

    if handler != function.prune_conv_in_channels or layer.groups == 1 or layer.transposed:
        return s.positions
    each = layer.in_channels // layer.groups
    return np.sort(np.concatenate([s.positions + k * each for k in range(layer.groups)], 1), 1)


def _aligned(positions: Ints, width: int) -> tuple[list[int], list[int]]:
    """idxs in ascending order (some importances sort them) and the root's position that each belongs to."""
    n, m = positions.shape
    root = np.arange(n)[:, None] * width + np.arange(m) * width // m
    order = np.argsort(positions, axis=None, kind="stable")
    return positions.reshape(-1)[order].tolist(), root.reshape(-1)[order].tolist()
