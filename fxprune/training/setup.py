"""What a run needs before its first step: accelerate, losses, and the name that its checkpoints carry."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from torch import nn

from fxprune.adapter import Adapter
from fxprune.errors import InputsError
from fxprune.pruning.order import Order
from fxprune.scoring.context import Loss
from fxprune.training.options import Training, text
from fxprune.training.scheduler import Scheduler

TOLD = ("ignore", "round_to", "min_width", "max_ratio", "exact_norms", "scope")  # of the limits, in a checkpoint
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


@contextlib.contextmanager
def accelerate_released() -> Iterator[None]:
    """Afterwards accelerate is as free as before: else the next run in this process could not choose its precision."""
    alone = not is_initialized()
    try:
        yield
    finally:
        if alone:
            AcceleratorState._reset_state()


def accelerator_for(training: Training) -> Accelerator:
    own = {"mixed_precision": training.mixed_precision, "log_with": training.log_with, "project_dir": training.log_dir}
    try:
        made = Accelerator(**{k: v for k, v in own.items() if v is not None}, **training.accelerate)
    except ValueError as e:
        raise InputsError(f"accelerate does not take these options: {e}") from e
    if (kind := made.distributed_type.value) in SHARDED:
        raise InputsError(
            f"masks need whole parameters in each process, and accelerate runs {kind}: configure it for DDP"
        )
    return made


def losses_of(adapter: Adapter, model: Any, order: Order) -> tuple[Loss, Loss]:
    """The loss that scores channels (the adapter's is a fixed function of the weights), and the one to train with."""
    scoring = order.scoring.loss or adapter.loss_of(model, order.seed)
    training = order.scoring.loss or adapter.training_loss(model)
    if scoring is None or training is None:
        raise InputsError("steps= trains the model: pass loss=, a callable loss(model, batch) -> scalar tensor")
    return scoring, training


def refuse(order: Order) -> None:
    """Refuse what only a cut at once can do."""
    odd: dict[str, Any] = {"ratios": order.limits.ratios} if order.limits.ratios is not None else {}
    odd |= {"granularity": order.granularity} if order.granularity != "channel" else {}
    odd |= {"attention": order.attention} if order.attention == "both" else {}
    for name, value in odd.items():
        raise InputsError(
            f"{name}={value!r} goes with the scheduler one_shot only; leave it out, or prune in one shot and train"
        )


def identity(net: nn.Module, scheduler: Scheduler, training: Training, order: Order) -> dict[str, str]:
    """What a checkpoint must have been made with."""
    shapes = sorted((name, tuple(t.shape)) for name, t in net.state_dict().items())
    model = f"{type(net).__name__} of {len(shapes)} tensors, {zlib.crc32(repr(shapes).encode()):08x}"
    scoring = {k: getattr(order.scoring, k) for k in ("criterion", "timesteps", "normalize")}
    limits = {k: getattr(order.limits, k) for k in TOLD}
    own = {**scoring, **vars(order.budget), **limits, "attention": order.attention, "seed": order.seed}
    return {"model": model, "scheduler": text(scheduler), **training.told(), **{k: text(v) for k, v in own.items()}}
