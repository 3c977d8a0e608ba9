"""Optimizers made before a model was pruned in place: they would go on without an error, and train nothing."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer


def warn_holders(replaced: Sequence[nn.Parameter]) -> None:
    """Warn of every optimizer in this process that holds parameters which a model no longer has."""
    gone = {id(p) for p in replaced}
    for optimizer in _optimizers() if gone else ():
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if number := sum(id(p) in gone for p in held):
            warnings.warn(
                f"{type(optimizer).__name__} holds {number} parameters that pruning in place has replaced: its steps "
                "would train nothing. Make a new optimizer of model.parameters(); or prune without inplace=True and "
                "let fxprune.Carry(model, small, graph, plan).optimizer(optimizer) take its state along",
                stacklevel=5,
            )


def _optimizers() -> list[Optimizer]:
    return [o for o in gc.get_objects() if issubclass(type(o), Optimizer) and hasattr(o, "param_groups")]
