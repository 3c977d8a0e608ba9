"""Soft pruning in a loop with `accelerate`.

    from fxprune.integrations.accelerate import prepared

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    pruning = prepared(accelerator, model, optimizer, steps=2000, loss=loss)
    for batch in loader:
        accelerator.backward(loss(pruning.model, batch))
        optimizer.step(); optimizer.zero_grad()
        pruning.step(batch)      # the channels go in its last step; pruning.model and the optimizer go on

Under accelerate's FSDP plugin (fsdp_version=2) the small model is another module, in shards as the other was: go on
with `pruning.model`.

`accelerator.save_state` and `load_state` keep the masks' state, until the channels are gone; after that they hold the
small model's, to be loaded into one that is pruned alike (`fxprune.apply` with the plan of `pruning.plan`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import nn

from fxprune.integrations.handoff import bare, hand_over
from fxprune.planning.plan import Plan
from fxprune.reporting.report import report
from fxprune.training.pruner import Pruner


class Pruning:
    """A `Pruner` that hands over by itself.

    Attributes:
        model: to train: what accelerate prepared, wrapped anew after the cut where it has to be, or sharded anew.
        plan: what went; None until then.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: Any, pruner: Pruner[Any]) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.pruner: Pruner[Any] | None = pruner
        self.plan: Plan | None = None

    @property
    def done(self) -> bool:
        """Whether the channels are gone."""
        return self.pruner is None

    def step(self, batch: Any = None, loss: Any = None) -> None:
        """Call this after each `optimizer.step()`; see `Pruner.step`.  While gradients accumulate, it does nothing."""
        if self.pruner is None or not self.accelerator.sync_gradients:
            return
        self.pruner.step(batch, loss)
        if self.pruner.done:
            self._cut(self.pruner)

    def _cut(self, pruner: Pruner[Any]) -> None:
        small = hand_over(pruner, [self.optimizer])
        self.pruner, self.plan = None, report(small).plan
        if self.model is small:
            return
        models, before = self.accelerator._models, self.model
        models[:] = [m for m in models if m is not before and m is not pruner.net]  # else states hold it twice
        if pruner.shards:  # as accelerate had shared out what was here
            models.append(small)
            self.model = small
            return
        self.model = self.accelerator.prepare_model(small)  # DistributedDataParallel holds the old parameters

    def state_dict(self) -> dict[str, Any]:
        """For `accelerator.save_state`."""
        if self.pruner is not None:
            return {"masks": self.pruner.state_dict()}
        assert self.plan is not None
        return {"plan": self.plan.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For `accelerator.load_state`.

        Raises:
            SaveError: the state is of another pruning.
        """
        if self.pruner is not None:
            self.pruner.load_state_dict(state.get("masks", {}))


def prepared(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    *,
    ratio: float = 0.4,
    steps: int,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    **options: Any,
) -> Pruning:
    """Masks on a model that accelerate has prepared.

    Args:
        accelerator: that prepared both; it keeps the masks' state with its own.
        model: as `prepare` gave it.
        optimizer: as `prepare` gave it.
        ratio: the share of the parameters (or of `of=`) to remove.
        steps: optimizer's steps while the masks move.
        loss: see `fxprune.Pruner`.
        options: all others of `fxprune.Pruner`.

    Raises:
        FxPruneError: as `fxprune.Pruner`.
    """
    made = Pruning(accelerator, model, optimizer, Pruner(bare(model), ratio=ratio, steps=steps, loss=loss, **options))
    accelerator.register_for_checkpointing(made)
    return made
