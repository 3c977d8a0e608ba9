"""From what a criterion returned to one number a channel.

With saliency s, and the elements E(c) that go when channel c goes (each counted once, also where two axes of one tensor
belong to c, as in a convolution from a residual stream to itself):

    score(c) = Σ_{e ∈ E(c)} s_e              reduce="sum"
    score(c) = Σ_{e ∈ E(c)} s_e / |E(c)|     reduce="mean"

Tensors for which the criterion returned nothing count neither in the sum nor in |E(c)|.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.channels import ChannelGraph, Group, Slice
from fxprune.elementwise import Elementwise
from fxprune.errors import CriterionError

Floats: TypeAlias = npt.NDArray[np.float64]
Reduction: TypeAlias = Literal["sum", "mean"]
Normalization: TypeAlias = Literal["none", "mean", "max"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean")
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "mean", "max")


def channel_scores(graph: ChannelGraph, criterion: str, returned: Any, reduce: Reduction) -> dict[str, Floats]:
    """Group name -> one score a channel, from what a criterion returned.

    Raises:
        CriterionError: an unknown name, a wrong shape, a value that is not finite, or a group without a score.
    """
    if not isinstance(returned, Mapping) or not returned:
        what = "nothing" if isinstance(returned, Mapping) else f"a {type(returned).__name__}"
        raise CriterionError(
            f"criterion {criterion!r} returned {what}; return a dict of tensor name -> saliency of the tensor's shape, "
            "or of group name -> one score a channel"
        )
    groups = {g.name for g in graph.groups}
    unknown = [n for n in returned if n not in groups and n not in graph.shapes]
    if unknown:
        raise CriterionError(_unknown_name(criterion, unknown[0], [*groups, *graph.shapes]))
    if all(n in groups for n in returned):
        return {g.name: _of_group(g, criterion, returned) for g in graph.groups}
    if any(n in groups for n in returned):
        mixed = next(n for n in returned if n in groups)
        raise CriterionError(
            f"criterion {criterion!r} returned scores of groups ({mixed}) beside saliencies of tensors; return one kind"
        )
    cut = {s.tensor for g in graph.groups for s in g.slices}
    summed = _Summed(criterion, {n: _saliency(graph, criterion, n, v) for n, v in returned.items() if n in cut})
    return {g.name: _reduced(g, criterion, summed, reduce) for g in graph.groups}


def _unknown_name(criterion: str, name: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did it mean {close[0]!r}?" if close else ""
    return (
        f"criterion {criterion!r} returned {name!r}, which is neither a tensor of the graph nor a group{hint} "
        "Use names of ctx.parameters, ctx.buffers or ctx.graph.groups"
    )


def _of_group(group: Group, criterion: str, returned: Mapping[str, Any]) -> Floats:
    """Scores that a criterion gave for a group itself."""
    if group.name not in returned:
        raise CriterionError(f"criterion {criterion!r} returned no score for group {group.name}; score every group")
    given = returned[group.name]
    values = np.asarray(given.detach().double().cpu() if isinstance(given, Tensor) else given, np.float64)
    if values.shape != (len(group),):
        raise CriterionError(
            f"criterion {criterion!r} returned shape {values.shape} for group {group.name}; return one number for "
            f"each of its {len(group)} channels, shape ({len(group)},)"
        )
    return _finite(values, criterion, f"the scores of group {group.name}")


def _saliency(graph: ChannelGraph, criterion: str, name: str, given: Any) -> Elementwise:
    """A criterion's saliency of one tensor, its shape checked."""
    value = given if isinstance(given, Elementwise) else Elementwise(torch.as_tensor(given), lambda block: block)
    if tuple(value.shape) != graph.shapes[name]:
        raise CriterionError(
            f"criterion {criterion!r} returned shape {tuple(value.shape)} for {name}; return a saliency of the "
            f"tensor's own shape {graph.shapes[name]}"
        )
    return value


def _not_finite(criterion: str, what: str, kind: str) -> str:
    return f"criterion {criterion!r}: {what} holds {kind}; check the model's weights, the data and the loss for it"


def _finite(values: Floats, criterion: str, what: str) -> Floats:
    if not np.isfinite(values).all():
        raise CriterionError(_not_finite(criterion, what, "NaN" if np.isnan(values).any() else "an infinite value"))
    return values


class _Summed:
    """Saliencies, each summed over all but some axes once, however many groups cut those axes."""

    def __init__(self, criterion: str, saliency: Mapping[str, Elementwise]) -> None:
        self.criterion, self.saliency = criterion, saliency
        self._cache: dict[tuple[str, tuple[int, ...]], Floats] = {}

    def over_all_but(self, tensor: str, axes: tuple[int, ...]) -> Floats:
        """Σ over the other axes, with the axes in the given (ascending) order.

        Raises:
            CriterionError: the saliency holds NaN or an infinite value.
        """
        if (tensor, axes) not in self._cache:
            value = self.saliency[tensor]
            total = value.sum([d for d in range(len(value.shape)) if d not in axes])
            self._cache[tensor, axes] = _finite(total.cpu().numpy(), self.criterion, f"the saliency of {tensor}")
        return self._cache[tensor, axes]


def _reduced(group: Group, criterion: str, summed: _Summed, reduce: Reduction) -> Floats:
    total, count = np.zeros(len(group)), 0
    for tensor, cuts in itertools.groupby(sorted(group.slices, key=lambda s: s.tensor), key=lambda s: s.tensor):
        if tensor in summed.saliency:
            part, elements = _union(tuple(sorted(cuts, key=lambda s: s.axis)), summed)
            total, count = total + part, count + elements
    if not count:
        tensors = ", ".join(dict.fromkeys(s.tensor for s in group.slices[:3]))
        raise CriterionError(
            f"criterion {criterion!r} returned no saliency for any tensor of group {group.name} ({tensors}, ...); "
            "return one for at least one tensor of every group"
        )
    return _finite(total / count if reduce == "mean" else total, criterion, f"the score of group {group.name}")


def _union(cuts: tuple[Slice, ...], summed: _Summed) -> tuple[Floats, int]:
    """Sum and number of one tensor's elements that lie in any of a channel's cuts, by inclusion and exclusion."""
    shape = summed.saliency[cuts[0].tensor].shape
    total, count = np.zeros(len(cuts[0].positions)), 0
    for size in range(1, len(cuts) + 1):
        for chosen in itertools.combinations(cuts, size):
            axes = {s.axis: s.positions.shape[1] for s in chosen}
            values = summed.over_all_but(chosen[0].tensor, tuple(axes))[_index(chosen)]
            sign = (-1) ** (size + 1)
            total += sign * values.reshape(len(total), -1).sum(1)
            count += sign * math.prod(axes.get(d, n) for d, n in enumerate(shape))
    return total, count


def _index(chosen: tuple[Slice, ...]) -> tuple[npt.NDArray[np.int64], ...]:
    """Positions of k cuts, broadcast against each other: shape (channels, m_1, ..., m_k)."""
    k = len(chosen)
    return tuple(
        s.positions.reshape(len(s.positions), *(1 if j != i else -1 for j in range(k))) for i, s in enumerate(chosen)
    )


def normalized(values: Floats, how: Normalization) -> Floats:
    """A group's scores over the mean or the maximum of their absolute values (unchanged where that is zero)."""
    if how == "none" or not len(values):
        return values
    size = np.abs(values).mean() if how == "mean" else np.abs(values).max()
    return values / size if size > 0 else values
