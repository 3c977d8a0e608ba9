"""Channels that are named one by one, or found to be zero: what of each group goes, before any constraint is asked.

{"conv1": [0, 5]}              rows of a layer's weight, as torch numbers its output channels
{"attn.to_q.weight:0": [2]}    channels of a group: whole heads, where these go as one
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import nn

from fxprune.errors import PlanError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.groups import Group
from fxprune.graph.makers import made_axes

Channels: TypeAlias = dict[str, tuple[int, ...]]  # group -> its channels


def named_channels(graph: ChannelGraph, removed: Mapping[str, Iterable[int]]) -> Channels:
    """The channels of groups that names and indices mean.

    Raises:
        PlanError: a name means nothing that can go, an index is none of its channels, or indices are part of a channel.
    """
    out: dict[str, set[int]] = {}
    for name, given in removed.items():
        indices = sorted({int(i) for i in given})
        found = _of_group(graph, name, indices) if _is_group(graph, name) else _of_tensor(graph, name, indices)
        for group, channel in found:
            out.setdefault(group, set()).add(channel)
    return {group: tuple(sorted(channels)) for group, channels in out.items()}


def _is_group(graph: ChannelGraph, name: str) -> bool:
    return any(g.name == name for g in graph.groups)


def _of_group(graph: ChannelGraph, name: str, indices: list[int]) -> Iterator[tuple[str, int]]:
    _require_inside(name, indices, len(graph.group(name)), "channels")
    return ((name, i) for i in indices)


def _of_tensor(graph: ChannelGraph, name: str, indices: list[int]) -> Iterator[tuple[str, int]]:
    tensor = graph.tensor(name)
    axis = min(made_axes(graph.traced, graph.env, graph.facts, graph.tensors, graph.space.size)[tensor])
    labels, size = graph.tensors[tensor][axis], graph.shapes[tensor][axis]
    _require_inside(name, indices, size, f"positions on axis {axis} of {tensor}")
    if labels is None:
        raise PlanError(f"nothing of {name!r} can go: {graph.explain(tensor, axis)}")
    component = graph.component[labels]
    asked = set(indices)
    for i in indices:
        c = int(component[i])
        if c not in graph.channel_of:
            raise PlanError(f"channel {i} of {name!r} cannot go: {graph.explain(tensor, axis)}")
        group, channel = graph.channel_of[c]
        rows = {int(p) for p in (component == c).nonzero()[0]}
        if rows - asked:
            raise PlanError(
                f"channel {i} of {name!r} goes with {_listed(rows - {i})}, and {_listed(rows - asked)} of these are "
                f"not named: name all of them, or {{{graph.groups[group].name!r}: [{channel}]}}"
            )
        yield graph.groups[group].name, channel


def _require_inside(name: str, indices: list[int], size: int, what: str) -> None:
    if beyond := [i for i in indices if not 0 <= i < size]:
        raise PlanError(f"{name!r} has {size} {what}, so no channel {beyond[0]}")


def _listed(numbers: set[int]) -> str:
    first = sorted(numbers)[:6]
    return f"{', '.join(map(str, first))}{', ...' if len(numbers) > len(first) else ''}"


# ---- what is zero ------------------------------------------------------------------------------------------------


def zero_channels(graph: ChannelGraph, model: nn.Module, tolerance: float, weights_only: bool) -> Channels:
    """The channels whose makers are all zero, or whose readers all are.

    Raises:
        PlanError: the graph is of another model; or no channel is zero, with how far the nearest one is.
    """
    named = dict(model.named_parameters())
    made = made_axes(graph.traced, graph.env, graph.facts, graph.tensors, graph.space.size)
    if lost := next((n for n in graph.parameters if n not in named or named[n].shape != graph.shapes[n]), None):
        raise PlanError(f"this {type(model).__name__} has no {lost} as the graph has: trace this model")
    out: Channels = {}
    nearest = float("inf")
    for group in graph.groups:
        largest = _largest(group, named, made, weights_only)
        nearest = min(nearest, float(largest.min()))
        found = (largest <= tolerance).nonzero().flatten().tolist()
        if found:
            out[group.name] = tuple(found)
    if not out:
        raise PlanError(
            f"no channel of this {type(model).__name__} is zero; the nearest has no weight above {nearest:.3g}: pass "
            "tolerance=, weights_only=True, or the channels by name, fxprune.Plan.removing(graph, {name: indices})"
        )
    return out


def _largest(
    group: Group, named: Mapping[str, nn.Parameter], made: Mapping[str, frozenset[int]], weights_only: bool
) -> torch.Tensor:
    """For every channel its largest element among what makes it, or among what reads it, whichever is less."""
    sides: dict[bool, torch.Tensor] = {}
    for s in group.slices:
        if s.tensor not in named or (weights_only and named[s.tensor].dim() < 2):
            continue
        maker = s.axis in made[s.tensor]
        rows = named[s.tensor].detach().abs().movedim(s.axis, 0).flatten(1) if named[s.tensor].dim() > 1 else None
        each = named[s.tensor].detach().abs() if rows is None else rows.amax(1)
        most = each[torch.from_numpy(s.positions).to(each.device)].amax(1).float().cpu()
        sides[maker] = torch.maximum(sides[maker], most) if maker in sides else most
    both = [*sides.values(), torch.full((len(group),), float("inf"))]
    return torch.stack(both).amin(0)
