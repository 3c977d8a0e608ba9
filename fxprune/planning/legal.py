"""Widths that a quantiser takes afterwards: what `legal_for=` keeps.

    format      inputs   outputs   why
    int8        8        8         the integer product of a GPU (weights alone take any width)
    int4-g32    32       1         one scale a group of 32 inputs (torchao, GGUF's q4_0 and q8_0)
    int4-g128   128      1         groups of 128 (GPTQ, AWQ)
    nf4         64       1         bitsandbytes' blocks of 64, which its CPU kernel takes a row at a time
    fp8         16       16        the scaled product of a GPU
    nvfp4       16       16        blocks of 16
    2:4         64       32        two of four inputs, in the tiles of the sparse kernels

They are asked of every `nn.Linear`, in positions of its weight: of a layer over heads so many go as give a multiple.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.planning.plan import Plan

FORMATS: dict[str, tuple[int, int]] = {
    "int8": (8, 8),
    "int4-g32": (32, 1),
    "int4-g128": (128, 1),
    "nf4": (64, 1),
    "fp8": (16, 16),
    "nvfp4": (16, 16),
    "2:4": (64, 32),
}


def require_format(legal_for: str | None) -> None:
    """Raise `BudgetError` unless it is a format that is known, or None."""
    if legal_for is not None and legal_for not in FORMATS:
        raise BudgetError(f"legal_for={legal_for!r} is unknown; choose {', '.join(FORMATS)}")


def legal_graph(graph: ChannelGraph, legal_for: str | None) -> ChannelGraph:
    """The graph, with the axes of its linear layers multiples of what a format takes."""
    if legal_for is None:
        return graph
    found = [(graph.tensors[name][axis], by) for name, axis, by in _asked(graph, legal_for)]
    out = copy.copy(graph)
    axes = [(axis, by) for axis, by in found if axis is not None]
    out.facts = replace(graph.facts, multiples=[*graph.facts.multiples, *axes])
    return out


def misfits(graph: ChannelGraph, plan: Plan, legal_for: str | None) -> tuple[str, ...]:
    """The linear layers that a format does not take after a plan: a norm, a head or what is held forbids it."""
    if legal_for is None:
        return ()
    keep: Bools = plan.kept(graph)
    left, out = graph.without(plan.blocks), []
    for name, axis, by in _asked(left, legal_for):
        size = left.shapes[name][axis]
        now = left.kept(left.tensors[name][axis], keep, size)
        if now % by:
            side = "inputs" if axis else "outputs"
            out.append(f"{name.removesuffix('.weight')} has {now} {side} (before: {size}), no multiple of {by}")
    return tuple(out)


def _asked(graph: ChannelGraph, legal_for: str) -> Iterator[tuple[str, int, int]]:
    """The weights of linear layers, with the multiples of each axis."""
    inputs, outputs = FORMATS[legal_for]
    for name, shape in graph.shapes.items():
        owner = graph.within.get(name, {}).get(name.rpartition(".")[0])
        if len(shape) == 2 and owner is not None and issubclass(owner, nn.Linear):
            yield from ((name, axis, by) for axis, by in ((0, outputs), (1, inputs)) if by > 1)
