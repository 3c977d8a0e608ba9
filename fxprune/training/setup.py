"""What a run needs before its first step: accelerate, losses, and the name that its checkpoints carry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from fxprune.adapter import Adapter
from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.cost_model import CostModel
from fxprune.planning.plan import Plan
from fxprune.pruning.order import Order
from fxprune.pruning.prune import trace
from fxprune.reporting.report import is_pruned, report
from fxprune.scoring import distributed as ranks
from fxprune.scoring.context import Loss
from fxprune.scoring.identity import of_data, of_model, told
from fxprune.training.checkpoints import Checkpoints
from fxprune.training.options import Training
from fxprune.training.scheduler import Scheduler

ORDERED = ("example_inputs", "outputs", "attention", "granularity", "strict", "seed")  # what else changes the result
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
    _check_trackers(training)
    own = {"mixed_precision": training.mixed_precision, "log_with": training.log_with, "project_dir": training.log_dir}
    try:
        made = Accelerator(**{k: v for k, v in own.items() if v is not None}, **training.accelerate)
    except (ValueError, TypeError) as e:
        raise InputsError(f"accelerate does not take these options: {e}") from e
    if (kind := made.distributed_type.value) in SHARDED:
        raise InputsError(
            f"steps= trains with an Accelerator of its own, and accelerate is configured for {kind}: configure it for "
            "plain data parallelism and pass a model sharded by fully_shard() (FSDP2), or train in a loop of your own "
            "(fxprune.integrations.accelerate takes its FSDP plugin)"
        )
    if made.num_processes != ranks.number():
        raise InputsError(
            f"torch.distributed runs {ranks.number()} processes and accelerate {made.num_processes}: start them by "
            'accelerate launch or torchrun, on CPUs with ACCELERATE_USE_CPU=true or Training(accelerate={"cpu": True})'
        )
    return made


def _check_trackers(training: Training) -> None:
    """Refuse trackers that accelerate would leave out without a word.

    Raises:
        InputsError: one is unknown, or its package is not installed.
    """
    asked = training.log_with
    there = [str(t) for t in get_available_trackers()]
    known = [str(t) for t in LOGGER_TYPE_TO_CLASS]
    for one in asked if isinstance(asked, (list, tuple)) else [asked]:
        if not isinstance(one, str) or one in there or one == "all":
            continue
        if one not in known:
            raise InputsError(f"log_with={one!r} is no tracker of accelerate; there are {', '.join(known)}")
        package = '"fxprune[tensorboard]"' if one == "tensorboard" else one.replace("_", "-")
        raise InputsError(f"log_with={one!r} needs a package that is not installed: pip install {package}")


def checkpoints_of(training: Training, accelerator: Accelerator) -> Checkpoints | None:
    """The folder of checkpoints, ready to be written to; None where none was asked for."""
    if training.checkpoint_dir is None:
        return None
    made = Checkpoints(training.checkpoint_dir, accelerator)
    made.prepare()
    return made


@contextlib.contextmanager
def tracked(accelerator: Accelerator, training: Training, name: dict[str, str]) -> Iterator[None]:
    """Within, trackers run, if there are any."""
    if training.log_with is not None:
        accelerator.init_trackers("fxprune", config=name)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def losses_of(adapter: Adapter, model: Any, order: Order) -> tuple[Loss, Loss]:
    """The loss that scores channels (the adapter's is a fixed function of the weights), and the one to train with."""
    given = order.scoring.loss
    scoring = adapter.loss_of(model, order.seed) if given is None else given
    training = adapter.training_loss(model) if given is None else given
    if scoring is None or training is None:
        raise InputsError("steps= trains the model: pass loss=, a callable loss(model, batch) -> scalar tensor")
    return scoring, training


def refuse(order: Order) -> None:
    """Refuse what only a cut at once can do."""
    odd: dict[str, Any] = {"ratios": order.limits.ratios} if order.limits.ratios is not None else {}
    odd |= {"granularity": order.granularity} if order.granularity != "channel" else {}
    odd |= {"shape": order.limits.shape} if order.limits.shape != "free" else {}
    odd |= {"attention": order.attention} if order.attention == "both" else {}
    for name, value in odd.items():
        raise InputsError(
            f"{name}={value!r} goes with the scheduler one_shot only; leave it out, or prune in one shot and train"
        )


def identity(net: nn.Module, scheduler: Scheduler, training: Training, order: Order, precision: str) -> dict[str, str]:
    """What a checkpoint must have been made with: weights, data, loss and all options."""
    scoring, limits = order.scoring, order.limits
    looked_at = scoring.data if training.checkpoint_dir else None  # for a checkpoint's sake only
    own = {k: getattr(scoring, k) for k in ("criterion", "timesteps", "normalize", "loss")}
    own |= {**vars(order.budget), **vars(limits), **{k: getattr(order, k) for k in ORDERED}}
    return {
        "model": of_model(net),
        "data": of_data(looked_at),
        "scheduler": told(scheduler),
        **training.told(),
        "precision": precision,
        **{k: told(v) for k, v in own.items()},
    }


def plans_of(net: nn.Module) -> tuple[Plan, ...]:
    """All that a model has gone through."""
    return (*report(net).earlier, report(net).plan) if is_pruned(net) else ()


def graph_of(dense: nn.Module, plans: tuple[Plan, ...], order: Order) -> ChannelGraph | None:
    """The graph that the one plan was made for; None where there are several."""
    if len(plans) > 1:
        return None
    traced = trace(dense, order.example_inputs, attention=plans[0].traced[0], outputs=order.outputs)
    return traced.revised(plans[0].traced[1:])


def share_of(order: Order, net: nn.Module) -> float:
    """The share to remove."""
    ratio = order.budget.ratio
    if order.budget.target is not None:
        graph = trace(net, order.example_inputs, attention=order.attention, outputs=order.outputs)
        ratio = order.budget.share(CostModel(graph))
    assert ratio is not None
    return ratio
