"""Soft pruning in lightning's `Trainer`.

    from fxprune.integrations.lightning import PruningCallback

    trainer = lightning.Trainer(max_steps=3000, callbacks=[PruningCallback("net", ratio=0.4, example_inputs=x)])
    trainer.fit(module, loader)      # module.net is the small one now

A checkpoint of lightning holds the masks' state, or what went; `fit(..., ckpt_path=...)` goes on from either.  To load
one from after the cut elsewhere:

    module = unpruned_to(CHECKPOINT, Module(...), "net")      # narrows module.net
    module.load_state_dict(torch.load(CHECKPOINT)["state_dict"])
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import nn

from fxprune.errors import InputsError, SaveError
from fxprune.integrations.handoff import LoopsLoss, bare, hand_over, require_here, schedule
from fxprune.planning.plan import Plan
from fxprune.pruning.prune import apply
from fxprune.reporting.report import is_pruned, report
from fxprune.scoring import distributed as ranks
from fxprune.training.pruner import Pruner

SHARE = 0.7  # of all steps: while the masks move
KEY = "fxprune"  # of the callback's state in a checkpoint


class PruningCallback(lightning.Callback):  # type: ignore[misc]
    """Masks the channels of a part of a LightningModule, and cuts them out when the schedule is over.

    The optimizer goes on with what is left.

    Under several processes the cut waits for the end of training, since DistributedDataParallel holds on to the
    parameters that it began with.

    Args:
        part: the attribute that holds the network, such as "net"; one inside another as "model.backbone".
        ratio: the share of the parameters (or of `of=`) to remove.
        steps: optimizer's steps while the masks move; None: 0.7 of the trainer's `max_steps`, or of its epochs' steps.
        loss: `loss(net, batch) -> scalar` for the criterion; None: the module's `training_step`, with nothing logged.
        options: all others of `fxprune.Pruner`, such as `example_inputs=`, `criterion=`, `ignore=`.

    Attributes:
        pruner: the pruner at work; None before training, and once the channels are gone.

    Raises:
        FxPruneError: when training begins, as `fxprune.Pruner`.
    """

    def __init__(
        self,
        part: str,
        ratio: float = 0.4,
        *,
        steps: int | None = None,
        loss: Callable[[nn.Module, Any], Any] | None = None,
        **options: Any,
    ) -> None:
        self.part, self.ratio, self.steps, self.loss, self.options = part, ratio, steps, loss, options
        self.pruner: Pruner[Any] | None = None
        self._plan: Plan | None = None
        self._taken = 0
        self._held: Mapping[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """What a checkpoint calls this callback's state."""
        return KEY

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Narrow the network before weights from after the cut are loaded into it: lightning asks the module first."""
        asked = pl_module.on_load_checkpoint

        def first(checkpoint: dict[str, Any]) -> None:
            self._narrow(pl_module, checkpoint.get("callbacks", {}).get(KEY, {}))
            asked(checkpoint)

        pl_module.__dict__["on_load_checkpoint"] = first

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the module's own hook."""
        pl_module.__dict__.pop("on_load_checkpoint", None)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put the masks on, and where they were."""
        if self._plan is not None:
            return
        net = _part(pl_module, self.part)
        steps = schedule(self.steps, int(trainer.estimated_stepping_batches), SHARE)
        require_here(net)
        own = LoopsLoss(lambda net, batch: _quiet_loss(pl_module, batch))
        loss = own if self.loss is None else self.loss
        self.pruner = Pruner(net, ratio=self.ratio, steps=steps, loss=loss, **self.options)
        self._taken = trainer.global_step
        if self._held is not None:
            self.pruner.load_state_dict(self._held)
            self._held = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the masks after a step of the optimizer; cut where they are done."""
        if self.pruner is None or self.pruner.done or trainer.global_step == self._taken:
            return
        self._taken = trainer.global_step
        self.pruner.step(batch)
        if self.pruner.flow.done and not ranks.several():
            self._cut(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Cut, where that had to wait."""
        if self.pruner is None:
            return
        if self.pruner.done:
            self._cut(trainer)
            return
        warnings.warn(
            f"training ended after {self.pruner.flow.taken} of {self.pruner.problem.steps} steps of the masks: the "
            "network is as it was trained, and not pruned",
            stacklevel=2,
        )
        self.pruner.detach()
        self.pruner = None

    def state_dict(self) -> dict[str, Any]:
        """The masks' state, or what went."""
        if self.pruner is not None:
            return {"part": self.part, "masks": self.pruner.state_dict()}
        return {} if self._plan is None else {"part": self.part, "plan": self._plan.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._held = state_dict.get("masks")

    def _cut(self, trainer: lightning.Trainer) -> None:
        assert self.pruner is not None
        pruner, self.pruner = self.pruner, None
        hand_over(pruner, trainer.optimizers)
        self._plan = report(pruner.net).plan

    def _narrow(self, module: lightning.LightningModule, state: Mapping[str, Any]) -> None:
        if "plan" in state:
            self._plan = _applied(module, self.part, state, self.options)


def unpruned_to(
    checkpoint: str | Path, module: lightning.LightningModule, part: str, **options: Any
) -> lightning.LightningModule:
    """The module with its network narrowed in place to what a checkpoint of after the cut holds; weights come next.

    Args:
        checkpoint: a file of lightning.
        module: made as it was for training.
        part: see `PruningCallback`.
        options: `example_inputs=` and `outputs=`, as they were for the callback.

    Raises:
        SaveError: the file holds no pruned network, or other things than tensors, numbers and text.
        PlanError: it is of another one.
    """
    state = _state_in(Path(checkpoint))
    if "plan" not in state:
        raise SaveError(f"{checkpoint} holds no pruned network: its masks were still at work, or there was no callback")
    _applied(module, part, state, options)
    return module


def _applied(
    module: lightning.LightningModule, part: str, state: Mapping[str, Any], options: Mapping[str, Any]
) -> Plan:
    plan, net = Plan.from_json(state["plan"]), _part(module, part)
    if not is_pruned(net):
        given = {k: options[k] for k in ("example_inputs", "outputs") if k in options}
        apply(net, plan, inplace=True, verify=False, **given)  # the weights that count are in the checkpoint
    return plan


def _state_in(file: Path) -> Mapping[str, Any]:
    """The callback's state in a checkpoint; nothing in it is run."""
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, ValueError) as e:
        raise SaveError(f"{file} cannot be read as tensors, numbers and text alone: {e!s:.200}") from e
    except Exception as e:
        raise SaveError(
            f"{file} holds Python objects beside tensors, numbers and text ({e!s:.200}): keep such hyperparameters out "
            "of the checkpoint, save_hyperparameters(ignore=[...])"
        ) from e
    state: Mapping[str, Any] = held.get("callbacks", {}).get(KEY, {})
    return state


def _part(module: nn.Module, name: str) -> nn.Module:
    try:
        return bare(module.get_submodule(name))
    except AttributeError as e:
        there = ", ".join(n for n, _ in module.named_children())
        raise InputsError(f"part={name!r}: this {type(module).__name__} has no such module; it has {there}") from e


def _quiet_loss(module: lightning.LightningModule, batch: Any) -> Any:
    with _unlogged(module):
        made = module.training_step(batch, 0)
    loss = made.get("loss") if isinstance(made, Mapping) else made
    if loss is None:
        raise InputsError(f"training_step of this {type(module).__name__} returns no loss: pass loss=")
    return loss


@contextmanager
def _unlogged(module: lightning.LightningModule) -> Iterator[None]:
    """Within, the module's `log` and `log_dict` do nothing: this step is no step of training."""
    names = ("log", "log_dict")
    module.__dict__.update({name: lambda *args, **kwargs: None for name in names})
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
