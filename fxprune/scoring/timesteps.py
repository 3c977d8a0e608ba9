"""Which times of a diffusion process a loss sees, and how often: `Timesteps`, a choice; `Density`, what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fxprune.arguments import FLAG, NUMBER, Kind, require_fields
from fxprune.errors import InputsError

Rule: TypeAlias = Callable[[Tensor], Tensor]
RULES = ("uniform", "snr", "threshold")
RULE = Kind(f"one of {', '.join(map(repr, RULES))}, or a callable", lambda v: isinstance(v, str) or callable(v))
CELLS = 1000  # of the process, over which a weight is taken as constant
CLEAN = 0.7  # the squared error of the clean sample falls with this power of the SNR
KNOWN = (1e-3, 1e3)  # SNRs between which that is taken to hold
BETWEEN = (0.2, 3.0)  # of the mean, how often a time is drawn for its error: no sample counts much more than others
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

    The loss is then the mean over draws, an estimate of Σ_k w_k L_k / Σ_k w_k.  Where cells are drawn by other numbers,
    `often`, a sample of cell k counts `balance`, and the estimate is of the same.
    """

    weights: Tensor
    often: Tensor | None = None

    def drawn(self, uniform: Tensor) -> Tensor:
        """Shares of the process, from numbers in [0, 1): the inverse of the cumulative distribution.

        It is monotone, so that stratified numbers give stratified shares.
        """
        p = self._often / self._often.sum()
        after = p.cumsum(0)
        cell = torch.searchsorted(after, uniform.double(), right=True).clamp(max=int(p.nonzero().max()))
        inside = ((uniform.double() - (after - p)[cell]) / p[cell]).clamp(0, 1 - 1e-6)
        return ((cell + inside) / len(p)).float()

    @property
    def _often(self) -> Tensor:
        return (self.weights if self.often is None else self.often).double()

    def weight(self, shares: Tensor) -> Tensor:
        """What a given time counts, in multiples of the mean over the process."""
        return _of_cells(self.weights / self.weights.mean(), shares)

    def balance(self, shares: Tensor) -> Tensor | None:
        """What a drawn time counts, with a mean of 1 over draws; None: all count alike."""
        if self.often is None:
            return None
        often = self._often / self._often.mean()
        return _of_cells((self.weights / self.weights.mean()).double().div(often).nan_to_num().float(), shares)


def _of_cells(values: Tensor, shares: Tensor) -> Tensor:
    cells = (shares * len(values)).long().clamp(0, len(values) - 1)
    return values.to(shares.device)[cells]


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
        importance: draw times more often where errors are larger, with a density proportional to w √e, and let each
            sample count w / density: the loss is the same, and the variance of its gradient lower.  The size e(t) of
            the squared error is taken from the process alone, factor · SNR^−0.7, as networks trained on images have it
            (by quarters of a linear schedule 0.095, 0.040, 0.023 and 0.007 for noise prediction: SNR^0.3).

    Raises:
        InputsError: for an unknown rule, or weights that are negative, not finite, or all zero.

    Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, ICCV 2023; Fang et al., Structural
    Pruning for Diffusion Models (Diff-Pruning), NeurIPS 2023; importance sampling by the size of the gradient: Zhao and
    Zhang, Stochastic Optimization with Importance Sampling, ICML 2015.
    """

    rule: str | Rule = "uniform"
    gamma: float = 5.0
    threshold: float = 0.05
    importance: bool = False

    def __post_init__(self) -> None:
        require_fields(self, rule=RULE, gamma=NUMBER, threshold=NUMBER, importance=FLAG)
        if not callable(self.rule) and self.rule not in RULES:
            raise InputsError(f"Timesteps(rule={self.rule!r}): use one of {', '.join(map(repr, RULES))}, or a callable")
        if self.importance and self.rule == "threshold":
            raise InputsError('Timesteps("threshold") measures the errors itself: leave out importance=True')
        if not self.gamma > 0:
            raise InputsError(f"Timesteps(gamma={self.gamma}): must be positive, such as 5")
        if not 0 <= self.threshold < 1:
            raise InputsError(f"Timesteps(threshold={self.threshold}): must be in [0, 1), such as 0.05")

    def density(self, process: Process, losses: Rule) -> Density:
        """The density for a process; `losses` gives the model's mean loss at times; only "threshold" asks for it."""
        alike = self.rule == "uniform" and not self.importance
        cells = 1 if alike else MEASURED if self.rule == "threshold" else CELLS
        times = process.at((torch.arange(cells) + 0.5) / cells)
        weights = self._weights(process, times, losses).detach().cpu().float()
        if weights.shape != (cells,) or not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
            raise InputsError(
                f"{self} gives weights that are not {cells} finite numbers of at least 0, one above 0: "
                f"shape {tuple(weights.shape)}, {weights.flatten()[:3].tolist()}..."
            )
        return Density(weights, weights * _sizes(process, times) if self.importance else None)

    def _weights(self, process: Process, times: Tensor, losses: Rule) -> Tensor:
        if callable(self.rule):
            return self.rule(times)
        if self.rule == "snr":
            return process.snr(times).clamp(max=self.gamma) / process.factor(times)
        if self.rule == "threshold":
            measured = losses(times)
            return (measured / measured.max() > self.threshold).float()
        return torch.ones(len(times))


def _sizes(process: Process, times: Tensor) -> Tensor:
    """√e at times, relative to its mean, within BETWEEN."""
    e = process.factor(times) * process.snr(times).clamp(*KNOWN).pow(-CLEAN)
    size = e.sqrt().detach().cpu().float()
    return (size / size.mean()).clamp(*BETWEEN)


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
