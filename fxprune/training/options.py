"""How `prune(..., steps=...)` trains: its options, the learning rate, and the loss as one module."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.errors import InputsError
from fxprune.scoring.context import Loss
from fxprune.scoring.identity import told
from fxprune.training.distillation import Distillation, Teacher

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
PathLike: TypeAlias = "str | os.PathLike[str]"
# What does not change the result.
BESIDE = ("checkpoint_dir", "checkpoint_every", "log_with", "log_dir", "picture", "accelerate")


@dataclass(frozen=True)
class Training:
    """How a model trains while it is pruned, and after.

    A step is one step of the optimizer, over `accumulate` batches of each process.

    Attributes:
        steps: while the masks move; for `one_shot`, which cuts first, steps of the small model.
        after: steps of the small model after the hand-off.
        learning_rate: of AdamW.
        optimizer: another one, made from the parameters: `lambda p: torch.optim.SGD(p, 0.1)`; then `learning_rate`
            counts for nothing.
        warmup: steps in which the learning rate rises to its value.
        anneal: let it fall to zero along a cosine, over all steps.
        clip: largest norm of the gradient; None: any.
        accumulate: batches a step.
        mixed_precision: "no", "bf16" or "fp16"; None: what `accelerate launch` was told.
        ema_decay: return an exponential moving average of the weights, such as 0.999; None: the weights themselves.
        distill: what to learn from the dense model.
        remember: how many of the last batches the criterion sees.
        checkpoint_dir: folder for checkpoints, of which it keeps two.  Where it holds one of the same run, the run goes
            on from there; one of other weights, data, loss or options is refused.
        checkpoint_every: steps between checkpoints.
        log_with: trackers, as `accelerate.Accelerator` takes them: "tensorboard", "wandb", ..., or several.
        log_dir: where trackers write.
        picture: file for a picture of the run, see `Pruner.picture`.
        accelerate: further arguments of `accelerate.Accelerator`.

    Raises:
        InputsError: a number is out of range.
    """

    steps: int
    after: int = 0
    learning_rate: float = 1e-4
    optimizer: MakeOptimizer | None = None
    warmup: int = 0
    anneal: bool = False
    clip: float | None = 1.0
    accumulate: int = 1
    mixed_precision: str | None = None
    ema_decay: float | None = None
    distill: Distillation | None = None
    remember: int = 4
    checkpoint_dir: PathLike | None = None
    checkpoint_every: int = 500
    log_with: Any = None
    log_dir: PathLike | None = None
    picture: PathLike | None = None
    accelerate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "remember", "checkpoint_every"):
            whole(name, getattr(self, name), least=1)
        for name in ("after", "warmup"):
            whole(name, getattr(self, name), least=0)
        if self.clip is not None and not self.clip > 0:
            raise InputsError(f"clip={self.clip} must be above 0, such as 1.0; None lets gradients be of any length")
        if not 0 <= self.learning_rate < math.inf:
            raise InputsError(f"learning_rate={self.learning_rate} must be finite and not negative, such as 1e-4")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputsError(
                f"ema_decay={self.ema_decay} is outside [0, 1); 0.999 averages over about a thousand steps"
            )

    @property
    def total(self) -> int:
        """All steps."""
        return self.steps + self.after

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step (0, 1, ...).

        >>> Training(8, warmup=2).rate(0), Training(8, anneal=True).rate(4)
        (0.5, 0.5)
        """
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * ((1 + math.cos(math.pi * step / self.total)) / 2 if self.anneal else 1.0)

    def made(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer."""
        if self.optimizer is None:
            return torch.optim.AdamW(parameters, self.learning_rate)
        return self.optimizer(parameters)

    def told(self) -> dict[str, str]:
        """What a checkpoint must have been made with."""
        return {f.name: told(getattr(self, f.name)) for f in fields(self) if f.name not in BESIDE}


def whole(name: str, value: Any, least: int) -> None:
    """Raise `InputsError` where a value is no whole number, or below the least."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputsError(f"{name}={value!r} must be a whole number, at least {least}")
    if value < least:
        raise InputsError(f"{name}={value} must be at least {least}")


class Objective(nn.Module):
    """The loss as a module: DDP and autocast wrap all of it, and the user's loss meets the plain model."""

    def __init__(self, net: nn.Module, loss: Loss, teacher: Teacher | None) -> None:
        super().__init__()
        self.net, self.loss, self.teacher = net, loss, teacher

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch, shape ()."""
        return self._task(batch) if self.teacher is None else self.teacher.loss(self.net, lambda: self._task(batch))

    def _task(self, batch: Any) -> Tensor:
        value: Any = self.loss(self.net, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputsError(f"loss(model, batch) returned {what}; return one scalar tensor that autograd can follow")
        return value.reshape(())


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate, as a factor of what it was at first."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
