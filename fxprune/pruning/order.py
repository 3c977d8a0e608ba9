"""`Order`: all that a call of `fxprune.prune` asks for, checked once and handed on whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import nn

from fxprune.arguments import require_fields
from fxprune.errors import InputsError
from fxprune.graph.modules import ExampleInputs
from fxprune.graph.outputs import Wanted
from fxprune.planning.budget import Budget
from fxprune.planning.limits import Limits
from fxprune.scoring.saliency import Normalization
from fxprune.scoring.score import DEFAULT_CRITERION, Criterion
from fxprune.scoring.timesteps import Timesteps

LossFunction: TypeAlias = Callable[[nn.Module, Any], Any]
RATIO = 0.4  # where nothing is asked
ATTENTION = ("heads", "head_dim", "both")


@dataclass(frozen=True)
class Scoring:
    """What scores are made of.

    Attributes:
        criterion: a name, a criterion, or a callable `(ctx) -> {tensor or group: scores}`.
        normalize: see `fxprune.score`.
        data: batches; None: the adapter makes `samples` of them.  In a training run, the batches to train with.
        loss: `loss(model, batch) -> scalar`; None: the adapter's.
        timesteps: which times of a diffusion process the adapter's loss sees.
        samples: calibration samples where the adapter makes the data.
        max_batches: how many of the data's batches are read; None: all, or 1000 where the data tell no length.
    """

    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION
    normalize: Normalization | None = None
    data: Iterable[Any] | None = field(default=None, repr=False)
    loss: LossFunction | None = None
    timesteps: str | Timesteps | None = None
    samples: int = 8
    max_batches: int | None = None

    def __post_init__(self) -> None:
        most: Any = self.max_batches
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise InputsError(f"max_batches={most!r} must be a whole number, at least 1, or None")
        if most is not None and self.data is None:
            raise InputsError(
                f"max_batches={most} counts the batches of data=, and none are given: pass data=, or samples= for what "
                "the model draws itself"
            )


@dataclass(frozen=True)
class Order:
    """How much goes, within which limits, by which scores, and how the result is made; see `fxprune.prune`.

    Raises:
        InputsError: an unknown `attention`.
    """

    budget: Budget
    limits: Limits
    scoring: Scoring
    example_inputs: ExampleInputs | None = field(default=None, repr=False)
    outputs: Wanted | None = None
    attention: str = "heads"
    granularity: str = "channel"
    replace: str | None = None
    inplace: bool = False
    verify: bool = True
    strict: bool = False
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        require_fields(self, budget=Budget, limits=Limits, scoring=Scoring)
        if self.attention not in ATTENTION:
            raise InputsError(
                f"attention={self.attention!r} is unknown; choose heads or head_dim (or both, in prune())"
            )
        if self.replace not in (None, "linear"):
            raise InputsError(f'replace={self.replace!r} is unknown; choose "linear", or leave it out')

    @property
    def asked(self) -> Order:
        """The same; where no budget and no share by name is given, 0.4 is asked."""
        nothing = self.budget.ratio is None and self.budget.target is None
        if not nothing or isinstance(self.limits.ratios, Mapping):
            return self
        return replace(self, budget=replace(self.budget, ratio=RATIO))
