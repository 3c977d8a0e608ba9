"""Parameters that `fully_shard` (FSDP2) has shared out over processes: scored where they lie.

A tensor is put together when its saliencies are summed into channels, one at a time; gradients are those that FSDP has
averaged over the processes.  So every process has the scores of one process on the same global batch.  What looks at
weights at work, at each sample's gradient, or at second derivatives is refused: FSDP shows none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxprune.errors import InputsError
from fxprune.graph.modules import sharded

INSTEAD = "score the whole model before fully_shard(), whose plan fits the sharded one, or use 'magnitude' or 'taylor'"


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; every process must come here in turn."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own(tensor: Tensor) -> Tensor:
    """The shard of this process."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def refuse_hidden(who: str, model: nn.Module, needs: frozenset[str], derivatives: int) -> None:
    """Raise `InputsError` where a criterion needs what FSDP hides."""
    if sharded(model) and ("forward" in needs or derivatives > 1):
        what = "watches weights at work" if "forward" in needs else "differentiates twice"
        raise InputsError(f"{who} {what}, and sharded parameters (FSDP) do not show that: {INSTEAD}")


def refuse_samples(who: str, model: nn.Module) -> None:
    """Raise `InputsError` where gradients must not be averaged over processes."""
    if sharded(model):
        raise InputsError(f"{who} needs gradients that sharded parameters (FSDP) average over processes: {INSTEAD}")


def resharded(model: nn.Module) -> nn.Module:
    """The model with all its parameters in shards: after a forward pass some are whole."""
    for module in model.modules():
        if hasattr(module, "reshard") and sharded(model):
            cast("Any", module).reshard()
    return model


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
        loss.backward()  # type: ignore[no-untyped-call]
        for name, p in parameters.items():  # in the order of all processes
            gradient, p.grad = p.grad, None
            if gradient is not None:
                reached += 1
                with torch.no_grad():
                    visit(name, whole(gradient).clone())
    finally:
        for name, p in parameters.items():
            p.grad = kept[name]
    return reached
