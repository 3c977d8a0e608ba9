"""Parameters that `fully_shard` (FSDP2) has shared out over processes: scored where they lie.

A tensor is put together when its saliencies are summed into channels, one at a time; gradients are those that FSDP has
averaged over the processes.  So every process has the scores of one process on the same global batch.  What looks at
weights at work, at each sample's gradient, or at second derivatives needs the whole model: FSDP shows none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fxprune.errors import InputsError
from fxprune.graph.modules import in_shards, sharded
from fxprune.graph.sharding import full
from fxprune.scoring import distributed as ranks

GIB = 1 << 30


def own(tensor: Tensor) -> Tensor:
    """The shard of this process."""
    return tensor.to_local() if in_shards(tensor) else tensor  # type: ignore[attr-defined]


def refuse_samples(who: str, model: nn.Module) -> None:
    """Raise `InputsError` where gradients must not be averaged over processes."""
    if sharded(model):
        raise InputsError(
            f"{who} says that it takes sharded parameters (FSDP), and needs gradients that these average over "
            "processes: leave its attribute `sharded` out, or pass fxprune.whole(model)"
        )


def require_even(who: str, number: int) -> None:
    """Raise `InputsError` where processes have other numbers of batches: in shards they meet in every pass."""
    if not ranks.several():
        return
    numbers = [found[0] for found in ranks.gathered([number])]
    if len(set(numbers)) > 1:
        raise InputsError(
            f"{who}: the processes have {', '.join(map(str, numbers))} batches, and a model in shards (FSDP) takes "
            "each together with the others: pass as many in each (their sizes may differ), or fxprune.whole(model)"
        )


def told_whole(parameters: Mapping[str, Tensor]) -> str:
    """What is told where a model was put together to be scored."""
    size = sum(p.numel() * p.element_size() for p in parameters.values()) / GIB
    return (
        f"all weights were put together in each process, {size:.2g} GiB: this criterion sees more than shards show; "
        "magnitude and taylor score them where they lie"
    )


def sharded_backward(loss: Tensor, parameters: Mapping[str, nn.Parameter], visit: Callable[[str, Tensor], None]) -> int:
    """Run the backward pass; `visit(name, gradient)` is called for each parameter that it reaches, afterwards.

    Returns:
        How many that are.
    """
    kept = {name: p.grad for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    reached = 0
    try:
        with ranks.told():
            loss.backward()  # type: ignore[no-untyped-call]
        for name, p in parameters.items():  # in the order of all processes
            gradient, p.grad = p.grad, None
            if gradient is not None:
                reached += 1
                with torch.no_grad(), ranks.told():
                    visit(name, full(gradient).clone())
    finally:
        for name, p in parameters.items():
            p.grad = kept[name]
    return reached
