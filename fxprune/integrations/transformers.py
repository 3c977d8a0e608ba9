"""Soft pruning in transformers' `Trainer`.

    from fxprune.integrations.transformers import soft_pruning

    trainer = Trainer(model, args, train_dataset=data)
    soft_pruning(trainer, ratio=0.4)
    trainer.train()      # trainer.model is the small one now; trainer.save_model(DIR) writes it for fxprune.load(DIR)

Checkpoints are the trainer's own.  One from before the cut holds the masks' state beside it, and
`trainer.train(resume_from_checkpoint=True)` goes on; one from after it holds the small model: go on with
`Trainer(fxprune.load(CHECKPOINT), ...)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fxprune.errors import InputsError, SaveError
from fxprune.integrations.handoff import LoopsLoss, bare, hand_over, require_here, schedule
from fxprune.reporting.report import is_pruned
from fxprune.scoring import distributed as ranks
from fxprune.training.pruner import Pruner

SHARE = 0.7  # of all steps: while the masks move


class PruningCallback(TrainerCallback):  # type: ignore[misc]
    """Masks the channels of the trained model, cuts them out when the schedule is over, and lets its optimizer go on.

    Under several processes the cut waits for the end of training, since DistributedDataParallel holds on to the
    parameters that it began with.

    Args:
        ratio: the share of the parameters (or of `of=`) to remove.
        steps: optimizer's steps while the masks move; None: 0.7 of all.
        loss: `loss(model, batch) -> scalar` for the criterion, `batch` being `(args, kwargs)` of the model's last call;
            None: the `loss` that the model returns.
        options: all others of `fxprune.Pruner`, such as `criterion=`, `scheduler=`, `ignore=`.

    Attributes:
        pruner: the pruner at work; None before training, and once the channels are gone.

    Raises:
        FxPruneError: when training begins, as `fxprune.Pruner`.
    """

    def __init__(
        self,
        ratio: float = 0.4,
        *,
        steps: int | None = None,
        loss: Callable[[nn.Module, Any], Any] | None = None,
        **options: Any,
    ) -> None:
        self.ratio, self.steps, self.loss, self.options = ratio, steps, loss, options
        self.pruner: Pruner[Any] | None = None
        self.batches = _Calls()
        self._hook: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Put the masks on, and where they were."""
        net = bare(given["model"])
        steps = schedule(self.steps, state.max_steps, SHARE)
        if is_pruned(net) and state.global_step >= steps:
            return
        if args.load_best_model_at_end:
            raise InputsError(
                "load_best_model_at_end=True may go back to a checkpoint from before the cut, whose weights fit no "
                "longer: leave it out"
            )
        self.batches.net = net
        require_here(net)
        loss = _own_loss if self.loss is None else self.loss
        self.pruner = Pruner(net, ratio=self.ratio, steps=steps, loss=loss, **self.options)
        if self.batches.hooked:
            self._hook = net.register_forward_pre_hook(self.batches, with_kwargs=True)
        if state.global_step:
            self._resume(self.pruner, _file(args, state))

    def on_step_begin(self, *args: Any, **given: Any) -> None:
        """What the model is called with from now on is a batch."""
        self.batches.on = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Move the masks; cut where they are done."""
        self.batches.on = False
        if self.pruner is None or self.pruner.done:
            return
        self.pruner.step(self.batches.last)
        if self.pruner.flow.done and not ranks.several():
            self._cut(given.get("optimizer"))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Keep the masks' state beside a checkpoint."""
        if self.pruner is not None and (file := _file(args, state)).parent.is_dir():
            torch.save(self.pruner.state_dict(), file)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Cut, where that had to wait."""
        if self.pruner is None:
            return
        if self.pruner.done:
            self._cut(given.get("optimizer"))
            return
        warnings.warn(
            f"training ended after {self.pruner.flow.taken} of {self.pruner.problem.steps} steps of the masks: the "
            "model is as it was trained, and not pruned",
            stacklevel=2,
        )
        self._released().detach()

    def _cut(self, optimizer: Any) -> None:
        hand_over(self._released(), [] if optimizer is None else [optimizer])

    def _released(self) -> Pruner[Any]:
        pruner, self.pruner = self.pruner, None
        if self._hook is not None:
            self._hook.remove()
        assert pruner is not None
        return pruner

    def _resume(self, pruner: Pruner[Any], file: Path) -> None:
        if not file.is_file():
            raise SaveError(
                f"{file} is missing: this checkpoint was written without the pruning callback, and does not say where "
                "the masks were; begin anew, or go on from another one"
            )
        pruner.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


class _Calls:
    """The last call of a model while it trains, seen by a hook that no copy of the model takes along."""

    def __init__(self) -> None:
        self.net: nn.Module | None = None
        self.on, self.hooked = False, True
        self.last: Any = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.on and module is self.net and torch.is_grad_enabled():
            self.last = args, dict(kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Calls:
        return self


def _own_loss(model: nn.Module, batch: Any) -> Any:
    args, kwargs = batch
    given = model(*args, **kwargs)
    loss = given.get("loss") if isinstance(given, Mapping) else None
    if loss is None:
        raise InputsError(
            f"this {type(model).__name__} returns no loss for what the trainer calls it with: use "
            "fxprune.integrations.transformers.soft_pruning(trainer), which asks the trainer, or pass loss="
        )
    return loss


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    return folder / f"fxprune-masks-{ranks.rank()}.pt"


def soft_pruning(trainer: Trainer, ratio: float = 0.4, *, steps: int | None = None, **options: Any) -> PruningCallback:
    """Let a trainer prune while it trains: its criterion scores by the trainer's own `compute_loss`.

    Args:
        trainer: not begun yet.
        ratio: see `PruningCallback`.
        steps: see `PruningCallback`.
        options: see `PruningCallback`.
    """
    compute = trainer.compute_loss
    loss = options.pop("loss", None) or LoopsLoss(lambda model, batch: compute(model, dict(batch)))
    callback = PruningCallback(ratio, steps=steps, loss=loss, **options)
    callback.batches.hooked = False

    def recorded(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if callback.batches.on:
            callback.batches.last = dict(inputs)
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = recorded
    trainer.add_callback(callback)
    return callback
