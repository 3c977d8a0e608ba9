"""How `prune(..., steps=...)` trains: its options, the learning rate, and the loss as one module.

The recipe that is used where nothing else is said, by steps t = 0, 1, ... of n:

    rate(t) = peak · min(1, (t + 1) / warmup) · (1 + cos(π t / n)) / 2      warmup = n / 10
    peak    = 0.003 · √min(B, 32) · √(mean of θ² over all matrices and kernels)      B samples a step, of all processes
    loss    = the caller's + 16 · D(outputs, outputs of the dense model)              see `Distillation`
    dropout = none

Source: Loshchilov and Hutter, SGDR, ICLR 2017 (cosine); Shazeer and Stern, Adafactor, ICML 2018 (steps relative to the
size of the weights); Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, NeurIPS 2022 (the
root of the batch); Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.arguments import (
    FLAG,
    FROM_ZERO,
    INTEGER,
    MAPPING,
    NUMBER,
    PATH,
    POSITIVE,
    TENSORS,
    TEXT,
    AKind,
    Kind,
    number,
    require_fields,
    takes,
    tensors,
)
from fxprune.errors import InputsError
from fxprune.graph.modules import in_shards
from fxprune.graph.sharding import full
from fxprune.scoring.context import Loss
from fxprune.scoring.identity import told
from fxprune.training.distillation import Distillation, Teacher
from fxprune.training.rates import named_rate

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
PathLike: TypeAlias = "str | os.PathLike[str]"
KINDS: dict[str, AKind] = {
    **dict.fromkeys(("steps", "accumulate", "remember", "checkpoint_every"), INTEGER),
    "after": INTEGER,
    "warmup": INTEGER.or_none,
    **dict.fromkeys(("checkpoint_dir", "log_dir", "picture"), PATH.or_none.raising(InputsError)),
    "learning_rate": NUMBER.or_none,
    "optimizer": Kind('"soap", or a function of the parameters', lambda v: isinstance(v, str) or callable(v)).or_none,
    "anneal": FLAG,
    "dropout": FLAG.or_none,
    "schedule": Kind(
        "the name of a schedule, or a function of the step", lambda v: isinstance(v, str) or callable(v)
    ).or_none,
    "clip": POSITIVE.or_none,
    "mixed_precision": TEXT.or_none,
    "ema_decay": number("a number in [0, 1)", 0, 1 - 1e-12).or_none,
    "accelerate": MAPPING,
}
AUTO = "auto"
SOAP = "soap"
WARMUP = 0.1  # of all steps
RELATIVE = 0.003  # of the weights' size, the largest step of a weight, by one sample
LARGEST = 32  # samples: a gradient of more has less noise, but no larger steps were found to be better
LEADING = 16.0  # weight of the dense outputs: they have none of the noise that few steps do not average out
OWN = 2.0  # times the rate of a matrix's own size, by SOAP
BETAS = 0.8, 0.95  # of SOAP: few steps leave no time to follow a long mean of gradients
SMALLEST = 0.1  # of the rate of all: what began at zero has no size to go by
FALLBACK = 1e-4  # learning rate of weights that are all zero
# What does not change the result.
BESIDE = ("checkpoint_dir", "checkpoint_every", "log_with", "log_dir", "picture", "accelerate")


@dataclass(frozen=True)
class Training:
    """How a model trains while it is pruned, and after.

    A step is one step of the optimizer, over `accumulate` batches of each process.

    Attributes:
        steps: while the masks move; for `one_shot`, which cuts first, steps of the small model.
        after: steps of the small model after the hand-off.
        learning_rate: of AdamW or SOAP, at its highest; None: a share of the root mean square of the weights that grows
            with the root of the samples a step: 0.3 % for one sample, 0.6 % for 4, 1.7 % for 32 and more.  SOAP then
            moves every matrix by twice that share of its own size (of a tenth of all weights' size, if that is more).
        optimizer: None: AdamW; "soap": SOAP, whose steps follow the curvature that it has seen: nearer to the dense
            model in as many steps, each of which takes longer (`pip install "fxprune[soap]"`); or one of yours, made
            from the parameters: `lambda p: torch.optim.SGD(p, 0.1)`, with a rate of its own.
        warmup: steps in which the learning rate rises to its value; None: a tenth of all.
        anneal: let it fall to zero along a cosine, over all steps.
        schedule: another way of the learning rate: the name of one of diffusers or transformers ("linear",
            "cosine_with_restarts", "constant_with_warmup", ...), with `warmup`, or a function of the step (0, 1, ...)
            that gives its factor; then `anneal` counts for nothing.
        clip: largest norm of the gradient; None: any.
        accumulate: batches a step.
        mixed_precision: "no", "bf16" or "fp16"; None: what `accelerate launch` was told.
        ema_decay: return an exponential moving average of the weights, such as 0.999; None: the weights themselves.
        distill: what to learn from the dense model beside the loss.  It costs one forward of the dense model a step,
            and its memory.  "auto": its outputs, where the loss calls the model itself and there are outputs to
            compare, else nothing, with a warning; they have the weight 16, or 1 beside an `optimizer` of yours, whose
            steps may grow with the loss.  None: nothing.
        dropout: whether dropout, stochastic depth and other layers without weights draw while the model trains; the
            result has them as before.  None: not where it learns from the dense model, whose answers are free of them,
            and to which few steps come nearer without.
        remember: how many of the last batches the criterion sees.
        checkpoint_dir: folder for checkpoints, of which it keeps two.  Where it holds one of the same run, the run goes
            on from there; one of other weights, data, loss or options is refused.
        checkpoint_every: steps between checkpoints.
        log_with: trackers, as `accelerate.Accelerator` takes them: "tensorboard", "wandb", ..., or several.
        log_dir: where trackers write.
        picture: file for a picture of the run, see `Pruner.picture`.
        accelerate: further arguments of `accelerate.Accelerator`.

    Raises:
        InputsError: a number is out of range, or a name is unknown; `learning_rate` is given beside an optimizer of
            yours.
    """

    steps: int
    after: int = 0
    learning_rate: float | None = None
    optimizer: MakeOptimizer | str | None = None
    warmup: int | None = None
    anneal: bool = True
    schedule: str | Callable[[int], float] | None = None
    clip: float | None = 1.0
    accumulate: int = 1
    mixed_precision: str | None = None
    ema_decay: float | None = None
    distill: Distillation | str | None = "auto"
    dropout: bool | None = None
    remember: int = 4
    checkpoint_dir: PathLike | None = None
    checkpoint_every: int = 500
    log_with: Any = None
    log_dir: PathLike | None = None
    picture: PathLike | None = None
    accelerate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_fields(self, **KINDS)
        for name in ("steps", "accumulate", "remember", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputsError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("after", "warmup"):
            if (getattr(self, name) or 0) < 0:
                raise InputsError(f"{name}={getattr(self, name)} must not be negative")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputsError(f"learning_rate={self.learning_rate} must be positive, such as 1e-4; None finds one")
        if isinstance(self.optimizer, str) and self.optimizer != SOAP:
            raise InputsError(
                f"optimizer={self.optimizer!r} is unknown; pass None for AdamW, {SOAP!r}, or a function of "
                "the parameters, such as lambda p: torch.optim.SGD(p, 0.1)"
            )
        if self.own_optimizer and self.learning_rate is not None:
            raise InputsError(
                f"learning_rate={self.learning_rate} is for AdamW and SOAP, and optimizer= makes one of your own: give "
                "it its rate there, such as lambda p: torch.optim.SGD(p, 0.1)"
            )
        if isinstance(self.schedule, str):
            self.rate(0)  # tells now that there is none of that name
        if not (self.distill in (None, AUTO) or isinstance(self.distill, Distillation)):
            raise InputsError(f'distill={self.distill!r} must be an fxprune.Distillation, "auto", or None')

    @property
    def own_optimizer(self) -> bool:
        """Whether the user makes the optimizer, whose rate is as it is."""
        return callable(self.optimizer)

    @property
    def total(self) -> int:
        """All steps."""
        return self.steps + self.after

    @takes(step=FROM_ZERO)
    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step (0, 1, ...).

        >>> Training(8, warmup=2, anneal=False).rate(0), Training(8, warmup=0).rate(4)
        (0.5, 0.5)
        """
        warmup = round(WARMUP * self.total) if self.warmup is None else self.warmup
        if isinstance(self.schedule, str):
            return float(named_rate(self.schedule, warmup, self.total)(step))
        if self.schedule is not None:
            return float(self.schedule(step))
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return rise * ((1 + math.cos(math.pi * step / self.total)) / 2 if self.anneal else 1.0)

    @takes(parameters=TENSORS)
    def made(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer; a rate that it finds is that of one sample a step, see `suit`.

        Raises:
            InputsError: there is nothing to train, `optimizer` gives no optimizer, or SOAP is missing or cannot train
                what is sharded.
        """
        weights: list[Any] = tensors("parameters", parameters)
        if not weights:
            raise InputsError("parameters=[] is empty: there is nothing to train")
        if any(w.is_meta for w in weights):
            raise InputsError("parameters= are on the meta device, which holds no numbers to train")
        if not callable(self.optimizer):
            rate = self.learning_rate or relative_rate(weights)
            if not math.isfinite(rate):
                raise InputsError("parameters= hold numbers that are not finite, so that no learning rate fits them")
            try:
                if self.optimizer != SOAP:
                    return torch.optim.AdamW(weights, rate)
                return _soap(weights, weights if self.learning_rate else _by_size(weights, rate), rate)
            except (TypeError, ValueError) as e:
                raise InputsError(f"parameters= hold what no optimizer trains ({e}); pass model.parameters()") from e
        made: Any = self.optimizer(weights)
        if not isinstance(made, torch.optim.Optimizer):
            raise InputsError(
                f"optimizer= gave a {type(made).__name__}; pass a callable that makes a torch.optim.Optimizer of the "
                "parameters, such as lambda p: torch.optim.SGD(p, 0.1)"
            )
        return made

    @property
    def distillation(self) -> Distillation | None:
        """What to learn from the dense model."""
        if not isinstance(self.distill, str):
            return self.distill
        return Distillation(1.0 if self.own_optimizer else LEADING)

    @property
    def drops(self) -> bool:
        """Whether dropout draws."""
        return self.distillation is None if self.dropout is None else self.dropout

    def told(self) -> dict[str, str]:
        """What a checkpoint must have been made with; of "auto" what it stands for, which may change."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in BESIDE}
        if isinstance(self.distill, str):
            own["distill"] = self.distill, self.distillation
        return {name: told(value) for name, value in own.items()}


def relative_rate(parameters: Iterable[Tensor], samples: int = 1) -> float:
    """A share of the root mean square of all weights of two axes or more (of all, where there is none).

    AdamW moves each weight by about its learning rate a step, whatever the size of the gradient.  With more samples a
    step more of that is signal: the rate grows with their root, up to LARGEST.

    >>> relative_rate([torch.full((4, 4), 0.05), torch.ones(4)], samples=4)
    0.0003
    """
    return round(RELATIVE * _root(samples) * _size(parameters), 9) or FALLBACK


def _size(parameters: Iterable[Tensor]) -> float:
    every = [p.detach() for p in parameters if p.is_floating_point() and p.numel()]
    chosen = [p for p in every if p.dim() > 1] or every
    squares = sum(float(full(p.float().square().sum())) for p in chosen)
    return math.sqrt(squares / max(1, sum(p.numel() for p in chosen)))


def _root(samples: int) -> float:
    return math.sqrt(min(max(samples, 1), LARGEST))


def _by_size(weights: list[Any], rate: float) -> list[dict[str, Any]]:
    """Groups of an optimizer: all vectors first, at the rate of all weights; then every matrix at that of its own size.

    One rate for all would move a small matrix by more of its size than a large one.
    """
    matrices = [w for w in weights if w.dim() > 1]
    own = [max(RELATIVE * _size([w]), SMALLEST * rate) for w in matrices]
    vectors = {"params": [w for w in weights if w.dim() <= 1], "lr": rate}
    return [vectors, *({"params": [w], "lr": OWN * r} for w, r in zip(matrices, own, strict=True))]


def _soap(weights: list[Any], groups: list[Any], rate: float) -> torch.optim.Optimizer:
    """Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, ICLR 2025."""
    try:
        import pytorch_optimizer
    except ImportError as e:
        raise InputsError(f'optimizer="soap" needs pytorch-optimizer ({e}): pip install "fxprune[soap]"') from e
    if any(map(in_shards, weights)):
        raise InputsError('optimizer="soap" needs whole matrices, and these parameters are sharded (FSDP): pass None')
    made: torch.optim.Optimizer = pytorch_optimizer.SOAP(
        groups, rate, betas=BETAS, weight_decay=0.01, precondition_frequency=5
    )
    return made


def suit(training: Training, optimizer: torch.optim.Optimizer, samples: int) -> None:
    """Take a found rate, that of one sample a step, to as many; one that the user gave stays."""
    if training.learning_rate is None and not training.own_optimizer:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = group["lr"] * _root(samples)


class Objective(nn.Module):
    """The loss as a module: DDP and autocast wrap all of it, and the user's loss meets the plain model."""

    def __init__(self, net: nn.Module, loss: Loss, teacher: Teacher | None) -> None:
        super().__init__()
        self.net, self.loss, self.teacher = net, loss, teacher
        projections = None if teacher is None else teacher.projections
        self.projections = None if projections is None else projections.matrices  # DDP shares their gradients

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
