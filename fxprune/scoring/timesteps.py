"""Which times of a diffusion process a loss sees, and how often: `Timesteps`, a choice; `Density`, what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fxprune.arguments import NUMBER, Kind, require_fields
from fxprune.errors import InputsError

Rule: TypeAlias = Callable[[Tensor], Tensor]
RULES = ("uniform", "snr", "threshold")
RULE = Kind(f"one of {', '.join(map(repr, RULES))}, or a callable", lambda v: isinstance(v, str) or callable(v))
CELLS = 1000  # of the process, over which a weight is taken as constant
MEASURED = 20  # times at which the loss is measured, for "threshold"


class Process(Protocol):
    """What a rule may know of a forward process; times are as the model takes them."""

    def at(self, shares: Tensor) -> Tensor:
        """Times at shares of the process in [0, 1)."""

    def shares(self, times: Tensor) -> Tensor:
        """The inverse of `at`."""

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio."""

    def factor(self, times: Tensor) -> Tensor:
        """Squared error of the model's answer over that of the clean sample which it implies."""


@dataclass(frozen=True, eq=False)
class Density:
    """How often times are drawn: one weight for each of K equal cells of the process, in order.

    The loss is then the mean over draws, an estimate of Σ_k w_k L_k / Σ_k w_k.
    """

    weights: Tensor

    def drawn(self, uniform: Tensor) -> Tensor:
        """Shares of the process, from numbers in [0, 1): the inverse of the cumulative distribution.

        It is monotone, so that stratified numbers give stratified shares.
        """
        p = self.weights.double() / self.weights.double().sum()
        after = p.cumsum(0)
        cell = torch.searchsorted(after, uniform.double(), right=True).clamp(max=int(p.nonzero().max()))
        inside = ((uniform.double() - (after - p)[cell]) / p[cell]).clamp(0, 1 - 1e-6)
        return ((cell + inside) / len(p)).float()

    def weight(self, shares: Tensor) -> Tensor:
        """What a given time counts, in multiples of the mean over the process."""
        relative = self.weights / self.weights.mean()
        cells = (shares * len(relative)).long().clamp(0, len(relative) - 1)
        return relative.to(shares.device)[cells]


@dataclass(frozen=True)
class Timesteps:
    """Which timesteps the loss of a diffusion model sees, and with what weight.

        L = Σ_t w(t) L_t / Σ_t w(t)

    Times are drawn with a density proportional to w, stratified: of n samples, the i-th gets one from the i-th of n
    parts of equal weight, which lowers the variance of the estimate.  Where a batch brings its own "timestep", w
    multiplies the sample's loss instead.

    Attributes:
        rule: "uniform": w = 1.
            "snr": w = min(SNR, γ) / factor, where |answer error|² = factor · |clean sample's error|²: min(SNR, γ) / SNR
            for noise prediction, min(SNR, γ) for sample, min(SNR, γ) / (SNR + 1) for v, min(SNR, γ) σ² for flows.
            "threshold": w = 1 where L_t / max L_t > threshold, else 0; L_t is measured with the model at 20 times.
            A callable: w of times (n,) as the model takes them, (n,) numbers of at least 0.
        gamma: γ of "snr".
        threshold: of "threshold", in [0, 1).

    Raises:
        InputsError: for an unknown rule, or weights that are negative, not finite, or all zero.

    Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, ICCV 2023; Fang et al., Structural
    Pruning for Diffusion Models (Diff-Pruning), NeurIPS 2023.
    """

    rule: str | Rule = "uniform"
    gamma: float = 5.0
    threshold: float = 0.05

    def __post_init__(self) -> None:
        require_fields(self, rule=RULE, gamma=NUMBER, threshold=NUMBER)
        if not callable(self.rule) and self.rule not in RULES:
            raise InputsError(f"Timesteps(rule={self.rule!r}): use one of {', '.join(map(repr, RULES))}, or a callable")
        if not self.gamma > 0:
            raise InputsError(f"Timesteps(gamma={self.gamma}): must be positive, such as 5")
        if not 0 <= self.threshold < 1:
            raise InputsError(f"Timesteps(threshold={self.threshold}): must be in [0, 1), such as 0.05")

    def density(self, process: Process, losses: Rule) -> Density:
        """The density for a process; `losses` gives the model's mean loss at times; only "threshold" asks for it."""
        cells = 1 if self.rule == "uniform" else MEASURED if self.rule == "threshold" else CELLS
        times = process.at((torch.arange(cells) + 0.5) / cells)
        weights = self._weights(process, times, losses).detach().cpu().float()
        if weights.shape != (cells,) or not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
            raise InputsError(
                f"{self} gives weights that are not {cells} finite numbers of at least 0, one above 0: "
                f"shape {tuple(weights.shape)}, {weights.flatten()[:3].tolist()}..."
            )
        return Density(weights)

    def _weights(self, process: Process, times: Tensor, losses: Rule) -> Tensor:
        if callable(self.rule):
            return self.rule(times)
        if self.rule == "snr":
            return process.snr(times).clamp(max=self.gamma) / process.factor(times)
        if self.rule == "threshold":
            measured = losses(times)
            return (measured / measured.max() > self.threshold).float()
        return torch.ones(len(times))


def chosen(timesteps: str | Timesteps) -> Timesteps:
    """A choice of timesteps, by the name of its rule or as it is."""
    return timesteps if isinstance(timesteps, Timesteps) else Timesteps(timesteps)


def strata(n: int, generator: torch.Generator) -> Tensor:
    """n numbers in [0, 1), one from each of n equal parts."""
    return (torch.arange(n) + torch.rand(n, generator=generator)).div(n).clamp(max=1 - 1e-6)


def own_strata(generators: Sequence[torch.Generator], start: int, whole: int) -> Tensor:
    """Numbers in [0, 1), each by a generator of its own, from consecutive ones of `whole` equal parts.

    Args:
        start: the first number's part.
    """
    drawn = torch.cat([torch.rand(1, generator=g) for g in generators])
    return (start + torch.arange(len(drawn)) + drawn).div(whole).clamp(max=1 - 1e-6)
