"""Second moments of what contractions read, gathered while batches stream by.

For every weight W that sums over an axis of its input x, over all samples and places:

    squares      E[x_i²]        (groups, I)
    covariance   E[x_i x_j]     (groups, I, I), about zero, not about the mean

A convolution's channels are read at every place; shifts of its kernel against each other are not told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.scoring import distributed as ranks
from fxprune.scoring.observation import Call

Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the weight's axis `axis` is summed against.

    Attributes:
        moment: (groups, I), or (groups, I, I), in float32 at least.
        alone: whether the weight does nothing else (a tied table is also looked up).
    """

    weight: str
    axis: int
    groups: int
    moment: Tensor
    alone: bool = True

    def root(self, weight: Tensor) -> Tensor:
        """The root mean square of every element's input, broadcastable to the weight."""
        squares = self.moment.diagonal(dim1=1, dim2=2) if self.moment.dim() == 3 else self.moment
        root = squares.clamp_min(0).sqrt()
        if self.groups == 1 or self.axis == 0:
            return root.reshape([-1 if d == self.axis else 1 for d in range(weight.dim())])
        rows = root.repeat_interleave(len(weight) // self.groups, 0)
        return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


@dataclass
class Gathering:
    """Sums over calls, for the weights and axes in `wanted`; `axes` tells how each weight was used."""

    full: bool
    wanted: frozenset[Key]
    sums: dict[Key, Tensor] = field(default_factory=dict)
    counts: dict[Key, float] = field(default_factory=dict)
    groups: dict[Key, int] = field(default_factory=dict)
    axes: dict[str, set[int]] = field(default_factory=dict)

    def __call__(self, call: Call) -> None:
        """Add one call's inputs."""
        self.axes.setdefault(call.weight, set()).add(call.reads)
        key = (call.weight, call.reads)
        if call.inputs is None or key not in self.wanted:
            return
        x = call.inputs.to(torch.promote_types(call.inputs.dtype, torch.float32))
        x = x.reshape(len(x), call.groups, -1, x.shape[-1])
        part = torch.einsum("ngip,ngjp->gij", x, x) if self.full else torch.linalg.vector_norm(x, dim=(0, 3)).square()
        self.sums[key] = self.sums[key].add_(part) if key in self.sums else part
        self.counts[key] = self.counts.get(key, 0) + x.shape[0] * x.shape[-1]
        self.groups[key] = call.groups

    def result(self) -> dict[Key, Inputs]:
        """Means over all calls, of all processes."""
        ranks.add_up(self.sums[k] for k in sorted(self.sums))
        out = {}
        for key in sorted(self.sums):
            moment = self.sums[key] / ranks.total(self.counts[key], self.sums[key].device)
            out[key] = Inputs(*key, self.groups[key], moment, alone=len(self.axes[key[0]]) == 1)
        return out


def roots(inputs: Mapping[Key, Inputs], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight -> root mean square of every element's input, where it is known (of several uses the largest)."""
    out: dict[str, Tensor] = {}
    for (name, _), held in inputs.items():
        root = held.root(weights[name])
        out[name] = torch.maximum(out[name], root) if name in out else root
    return out
