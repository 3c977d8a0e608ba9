"""Whose channels are a group's: the tensors that make them, told apart from those that read them.

    linear, convolution    weight (O, I, ...) makes along axis 0 and reads along axis 1
    transposed, matmul     the other way round
    bias, norm, embedding  makes along its channels

An axis of a weight reads where an op sums over it; along its other axes it makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.graph.groups import Group
from fxprune.graph.rules.op import Facts, Labels
from fxprune.graph.trace import Traced


def makers_of(
    groups: Sequence[Group], within: Mapping[str, Mapping[str, type]], made: Mapping[str, frozenset[int]]
) -> dict[str, tuple[str, ...]]:
    """Group -> all names of the tensors that make its channels.

    Args:
        within: tensor -> its names and the modules around it.
        made: tensor -> the axes along which it makes.
    """
    names = {t: [n for n, kind in found.items() if kind is torch.Tensor] for t, found in within.items()}
    out = {}
    for group in groups:
        own = dict.fromkeys(s.tensor for s in group.slices if s.axis in made[s.tensor])
        out[group.name] = tuple(name for tensor in own for name in names.get(tensor, [tensor]))
    return out


def made_axes(
    traced: Traced, env: Mapping[fx.Node, Any], facts: Facts, tensors: Mapping[str, Labels], labels: int
) -> dict[str, frozenset[int]]:
    """Tensor -> the axes along which it makes; axis 0 where all of them are read (a spectral norm reads both).

    Args:
        labels: how many there are.
    """
    read = np.zeros(labels, bool)
    for node, axis in _sums(traced, facts):
        found = env.get(node)
        if isinstance(found, tuple) and found[axis] is not None:
            read[found[axis]] = True
    out = {}
    for name, axes in tensors.items():
        made = (d for d, axis in enumerate(axes) if axis is not None and not read[axis].any())
        out[name] = frozenset(made) or frozenset({0})
    return out


def _sums(traced: Traced, facts: Facts) -> Iterator[tuple[fx.Node, int]]:
    """The (node, axis) pairs of weights, and of what is computed from weights alone, that an op sums over."""
    weights = _from_weights(traced)
    pairs = [pair for found in (*facts.reads.values(), *facts.against.values()) for pair in found]
    return (pair for pair in pairs if pair[0] in weights)


def _from_weights(traced: Traced) -> set[fx.Node]:
    """Parameters and buffers, and values that hang on nothing else."""
    out: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            own = node.name in traced.tensors or node.name in traced.constants
        else:
            own = all(n in out for n in node.all_input_nodes)
        if own:
            out.add(node)
    return out
