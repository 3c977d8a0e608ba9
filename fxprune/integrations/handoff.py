"""What the integrations share: the channels go out of the module that trains, and its optimizers go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxprune.errors import InputsError
from fxprune.graph.modules import sharded
from fxprune.graph.sharding import resharded
from fxprune.reporting.report import attach, report
from fxprune.rewriting.rewrite import transplant
from fxprune.training.pruner import Pruner


class LoopsLoss:
    """The loss of the loop that trains.

    It has no attributes that its identity could be taken from (see `fxprune.scoring.identity`): a trainer made anew is
    another object, but its loss is that of before, and a checkpoint goes on.
    """

    __slots__ = ("_ask",)

    def __init__(self, ask: Callable[[nn.Module, Any], Any]) -> None:
        self._ask = ask

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        return self._ask(model, batch)


def plain(optimizer: Any) -> Optimizer:
    """torch's optimizer, within what accelerate or lightning put around it."""
    inner = optimizer
    while not type(inner).__module__.startswith("torch.") and isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    made: Optimizer = inner
    return made


def require_here(net: nn.Module) -> None:
    """Raise `InputsError` where the small model would be another module, and a trainer keeps the one it has."""
    if sharded(net):
        raise InputsError(
            f"the parameters of this {type(net).__name__} are sharded (FSDP), and this trainer could not go on with "
            "the small model: train in a loop of your own with fxprune.integrations.accelerate, or use data parallelism"
        )


def hand_over(pruner: Pruner[Any], optimizers: Sequence[Any]) -> nn.Module:
    """Cut the module of a pruner whose schedule is over, and the state of the optimizer that trains it.

    Returns:
        What goes on: the same module, cut in place; where it is sharded, a small one in shards of its own.

    Raises:
        InputsError: several optimizers train it.
    """
    net = resharded(pruner.net)
    own = {id(p) for p in net.parameters()}
    holding = [o for o in map(plain, optimizers) if any(id(p) in own for g in o.param_groups for p in g["params"])]
    if len(holding) > 1:
        raise InputsError(
            f"{len(holding)} optimizers train parts of this {type(net).__name__}, and one can go on with the small "
            "one: let one optimizer have all its parameters, in groups"
        )
    if not holding:
        small = pruner.finish(shard=pruner.shards)
    else:
        with only(holding[0], own):
            small = pruner.finish(holding[0], shard=pruner.shards)
    if pruner.shards:
        going_on: nn.Module = small.train(net.training)
        return going_on
    made = report(small)
    transplant(net, small)
    attach(net, made)
    return net


@contextmanager
def only(optimizer: Optimizer, own: set[int]) -> Iterator[None]:
    """Within, an optimizer has parameters of these ids alone; afterwards what took their places, and the others."""
    before = [list(group["params"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"][:] = [p for p in group["params"] if id(p) in own]
    try:
        yield
    finally:
        for group, was in zip(optimizer.param_groups, before, strict=True):
            now = iter(list(group["params"]))
            group["params"][:] = [next(now) if id(p) in own else p for p in was]


def schedule(steps: int | None, total: int, share: float) -> int:
    """How many steps the masks take: what was asked, or a share of all.

    Raises:
        InputsError: there are not so many, or nobody knows how many there are.
    """
    if steps is None:
        if total < 1:
            raise InputsError("nobody says how many steps this training takes: pass steps=, those of the masks")
        return max(1, round(share * total))
    if 0 < total < steps:
        raise InputsError(
            f"steps={steps}: the training takes {total} steps, so the channels would never go; pass fewer"
        )
    return steps


def bare(model: nn.Module) -> nn.Module:
    """The module within DistributedDataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        inner = getattr(inner, "_orig_mod", inner)
        if inner is model:
            return model
        model = inner
