"""Saliencies summed over all but one axis of a tensor: each is read once, whatever axes groups cut.

That matters where a tensor lies on a disk, or is larger than what a processor keeps: a weight is cut by the channels
that it makes, and by those that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.scoring.elementwise import Elementwise

Floats: TypeAlias = npt.NDArray[np.float64]
Reduction: TypeAlias = Literal["sum", "mean", "max", "l2", "first"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean", "max", "l2", "first")


class Folded:
    """Saliencies, each folded over all but some axes once.

    Args:
        who: the criterion, as messages name it.
        saliency: by tensor.
        reduce: what the folded values are for.
        cut: the axes of each tensor that groups cut.
    """

    def __init__(
        self, who: str, saliency: Mapping[str, Elementwise], reduce: Reduction, cut: Mapping[str, Sequence[int]]
    ) -> None:
        self.who, self.saliency, self.reduce, self.cut = who, saliency, reduce, cut
        self._small: dict[str, Elementwise] = {}
        self._cache: dict[tuple[str, tuple[int, ...]], Floats] = {}

    def over_all_but(self, tensor: str, axes: tuple[int, ...]) -> Floats:
        """Σ s, Σ s² or max s over the other axes, with the axes in the given (ascending) order.

        Raises:
            CriterionError: the saliency holds NaN or an infinite value.
        """
        if (tensor, axes) not in self._cache:
            small = max(axes) < 2
            wanted = [axes]
            if len(axes) == 1:  # the others are asked for as well
                wanted += [(d,) for d in self.cut[tensor] if (d,) != axes and (d < 2) == small]
            value = self._without_taps(tensor) if small else self._values(tensor)
            for kept, found in zip(wanted, self._folds(value, wanted), strict=True):
                folded = found.cpu().double().numpy()
                self._cache[tensor, kept] = finite(folded, self.who, f"the saliency of {tensor}")
        return self._cache[tensor, axes]

    def total(self, tensor: str) -> float | None:
        """The sum of a tensor's saliency; None where none is at hand."""
        if self.reduce in ("max", "l2"):
            return None
        return next((float(v.sum()) for (name, _), v in self._cache.items() if name == tensor), None)

    def _values(self, tensor: str) -> Elementwise:
        value = self.saliency[tensor]
        return value.then(torch.square) if self.reduce == "l2" else value

    def _without_taps(self, tensor: str) -> Elementwise:
        """Folded over a kernel's taps once: most of a network's elements, which several axes have in common."""
        if tensor not in self._small:
            value = self._values(tensor)
            if math.prod(value.shape[2:]) > 1:
                value = Elementwise(self._folds(value, [(0, 1)])[0], lambda block: block)
            self._small[tensor] = value
        return self._small[tensor]

    def _folds(self, value: Elementwise, kept: Sequence[tuple[int, ...]]) -> list[Tensor]:
        over = [[d for d in range(len(value.shape)) if d not in axes] for axes in kept]
        return value.folds(over, largest=self.reduce == "max")


def finite(values: Floats, who: str, what: str) -> Floats:
    """The values.

    Raises:
        CriterionError: one is NaN, or infinite.
    """
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "an infinite value"
        raise CriterionError(f"{who}: {what} holds {kind}; check the model's weights, the data and the loss for it")
    return values
