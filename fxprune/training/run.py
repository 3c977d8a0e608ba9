"""A whole run: from the dense model to the small one, trained with accelerate.

    masks move   1 ... steps             every step: batches → loss → optimizer → masks
    hand-off                             the channels go; optimizer and averages go on with the small model
    after        steps + 1 ... total     the small model trains

A scheduler that cuts at once (`one_shot`) does so before the first step.  Every process does all of this; they share
gradients and scores.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from fxprune.adapter import find_adapter
from fxprune.errors import FxPruneError, RewriteError, VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import sharded
from fxprune.graph.sharding import full, resharded, whole
from fxprune.planning.plan import Plan
from fxprune.pruning.given import seeing
from fxprune.pruning.order import Order
from fxprune.pruning.prune import apply, prune_once
from fxprune.pruning.together import require_alike
from fxprune.reporting.figures import check_picture
from fxprune.reporting.history import History, Told
from fxprune.reporting.report import attach, report
from fxprune.reporting.trajectories import draw
from fxprune.rewriting.rewrite import transplant
from fxprune.scoring import distributed as ranks
from fxprune.scoring.batches import batch_size
from fxprune.scoring.entire import entire
from fxprune.scoring.identity import of_samples
from fxprune.scoring.randomness import rng_state, set_rng_state
from fxprune.training.average import Average
from fxprune.training.checkpoints import kept, of_this_version, saved_beside
from fxprune.training.display import bar
from fxprune.training.distillation import Teacher
from fxprune.training.dropout import dropping, to_train
from fxprune.training.features import Projections
from fxprune.training.options import AUTO, Objective, Training, set_rate, suit
from fxprune.training.pruner import Pruner
from fxprune.training.scheduler import Scheduler
from fxprune.training.serialization import to_plain
from fxprune.training.setup import (
    accelerate_released,
    accelerator_for,
    checkpoints_of,
    graph_of,
    identity,
    losses_of,
    plans_of,
    refuse,
    share_of,
    tracked,
)
from fxprune.training.sharded import (
    as_before,
    in_parts,
    read_shards,
    require_trainable,
    share_out,
    whole_state,
    working_copy,
    write_shards,
)
from fxprune.training.soundness import Watch, norm_of_gradients
from fxprune.training.stream import Stream


def trained(model: Any, scheduler: Scheduler, training: Training, order: Order) -> Any:
    """`prune` with training.

    The random numbers of python, numpy and torch are seeded for the run, and afterwards are as before; accelerate is
    set up for it, and released again, whether the run succeeds or not.
    """
    before = rng_state()
    try:
        with accelerate_released():
            return Run(model, scheduler, training, order).result()
    finally:
        set_rng_state(before)


class Run:
    """One run.

    Attributes:
        net: the model that trains: with masks, later the small one.
        pruner: moves the masks; None once the channels are gone.
        plans: what has gone, where it has.
        history: figures of all steps.
    """

    def __init__(self, model: Any, scheduler: Scheduler, training: Training, order: Order) -> None:
        self.training, self.order, self.scheduler = training, order, scheduler
        if not scheduler.at_once:
            refuse(order)
        if training.picture is not None:
            check_picture(training.picture)
        adapter = seeing(find_adapter(model), order.scoring.timesteps, order.scoring.loss is None)
        self.given, self.back = adapter.unwrap(model)
        require_trainable(self.given, training, order)
        self.sharded = sharded(self.given)
        self.scoring, self.loss = losses_of(adapter, model, order)
        self.process = adapter.process(model)
        self.accelerator = accelerator_for(training)
        self.checkpoints = checkpoints_of(training, self.accelerator)
        self.shown = order.progress and self.accelerator.is_main_process
        self.name = identity(self.given, scheduler, training, order, self.accelerator.mixed_precision)
        self.samples = of_samples(order.scoring.data) if self.checkpoints else ""
        self.place = next(self.given.parameters()).device
        self.modes = {name: m.training for name, m in self.given.named_modules()}
        self.net = self.given if order.inplace else working_copy(self.given)
        if not self.sharded:
            self.net.to(self.accelerator.device)
        set_seed(order.seed, device_specific=True)
        self.stream = Stream(order.scoring.data, self.accelerator)
        self.watch = Watch(self.given, training, self.stream, self.checkpoints)
        self.plans: tuple[Plan, ...] = ()
        self.pruner: Pruner[nn.Module] | None = None
        self.history = History()
        self.teacher: Teacher | None = None

    def result(self) -> Any:
        """Take all steps, or those that are left; give back what `prune` does."""
        try:
            with ranks.told():
                self._start()
            with (
                ranks.told(),
                tracked(self.accelerator, self.training, self.name),
                bar(self.shown, self.training.total, len(self.history)) as tell,
            ):
                self._steps(tell)
        except BaseException:
            if self.pruner is not None:
                self.pruner.detach()
            raise
        finally:
            self.accelerator.free_memory()
        return self.back(self._small())

    # ---- the beginning --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Up to the first step, or to where a checkpoint was taken."""
        path = self.checkpoints.latest() if self.checkpoints else None
        held = self.checkpoints.read(path, self.name, self.samples) if self.checkpoints and path else None
        plans: tuple[Plan, ...] = ()
        if held and path:
            with of_this_version(path):
                plans = tuple(map(Plan.from_json, held[0]["plans"]))
        if plans or self.scheduler.at_once:
            self._cut_first(plans)
        else:
            self._mask()
        to_train(self.net, self.training.drops)
        self.optimizer = self.training.made(self.net.parameters())
        if self.projections is not None:
            self.projections.join(self.optimizer, own=self.training.own_optimizer)
        self.average = Average(self.net, self.training.ema_decay) if self.training.ema_decay is not None else None
        self._prepare()
        if held and path:
            with of_this_version(path):
                self._resume(*held, path)

    def _mask(self) -> None:
        """Put the masks on."""
        dense = working_copy(self.net) if self.training.distillation else self.net
        order = self.order
        with entire(self.net) as net:
            share = share_of(order, net)
        self.pruner = Pruner(
            self.net,
            self.scheduler,
            order.scoring.criterion,
            share,
            steps=self.training.steps,
            of=order.budget.of,
            loss=self.scoring,
            example_inputs=order.example_inputs,
            outputs=order.outputs,
            attention=order.attention,
            remember=self.training.remember,
            normalize=order.scoring.normalize,
            seed=order.seed,
            limits=order.limits,
        )
        self.history = self.pruner.history
        self.teacher = self._teacher(dense, self.pruner.graph)

    def _cut_first(self, plans: tuple[Plan, ...]) -> None:
        """Cut before training: by plans of before, or by scores of the first batches."""
        dense, order = self.net, self.order
        with entire(dense) as net:
            small = self._replayed(net, plans) if plans else self._pruned(net)
            self.plans = plans_of(small)[len(plans_of(dense)) :]
            self.net = as_before(small, dense)
        if self.training.distillation:
            dense = working_copy(dense) if dense is self.given else dense
            graph = None
            if self.training.distillation.features:
                with entire(dense) as net:
                    graph = graph_of(net, self.plans, order)
            self.teacher = self._teacher(dense, graph)
            if self.teacher is not None and graph is not None:
                self.teacher.cut(self.plans[0].kept(graph))

    def _replayed(self, net: nn.Module, plans: tuple[Plan, ...]) -> nn.Module:
        """By plans of before."""
        order = self.order
        for plan in plans:
            net = apply(
                net,
                plan,
                example_inputs=order.example_inputs,
                outputs=order.outputs,
                verify=order.verify,
                strict=order.strict,
            )
        return net

    def _pruned(self, net: nn.Module) -> nn.Module:
        """By scores of the first batches."""
        batches = list(itertools.islice(self.stream, self.training.remember))
        scoring = replace(self.order.scoring, data=batches, loss=self.scoring, timesteps=None)
        with ranks.parts():  # each process took its part of the first batches
            small: nn.Module = prune_once(net, replace(self.order, scoring=scoring, inplace=False, progress=self.shown))
        if self.sharded:
            require_alike(small)
        return small

    def _teacher(self, dense: nn.Module, graph: ChannelGraph | None) -> Teacher | None:
        """The dense model to learn from, if one is wanted."""
        options = self.training.distillation
        if options is None:
            return None
        drawn = self.order.scoring.timesteps
        return Teacher(dense, graph, options, self.training.distill != AUTO, self.process, drawn)

    @property
    def projections(self) -> Projections | None:
        return self.teacher.projections if self.teacher is not None else None

    def _prepare(self) -> None:
        """Hand model and optimizer to accelerate, at the beginning and again after the hand-off."""
        self.accelerator.free_memory()
        made = Objective(self.net, self.loss, self.teacher)
        self.objective = self.accelerator.prepare_model(made, evaluation_mode=self.sharded)  # which leaves DDP out
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _steps(self, tell: Any) -> None:
        mean = math.nan
        if self.pruner is not None and self.pruner.done:  # a hand-off failed, and its checkpoint goes on
            self._hand_off(self.pruner)
        while len(self.history) < self.training.total:
            batches = list(itertools.islice(self.stream, self.training.accumulate))
            if self.checkpoints and not len(self.history):
                to_plain(batches[-1], "a batch")  # tells now what a checkpoint would refuse later
            loss = self._optimize(batches)
            told = self._told(batches[-1], loss)
            if told.step == 1 and self.pruner is not None and self.order.verify:
                self._rehearse(self.pruner)
            mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
            tell(told, mean)
            self.accelerator.log({"loss": loss, "lr": self.optimizer.param_groups[0]["lr"], **told.figures}, told.step)
            self._checkpoint(told.step)

    def _optimize(self, batches: list[Any]) -> float:
        """One step of the optimizer; the mean loss of all processes."""
        total = 0.0
        if not len(self.history):
            suit(self.training, self.optimizer, sum(map(batch_size, batches)) * self.accelerator.num_processes)
        for k, batch in enumerate(batches, 1):
            last = k == len(batches)
            alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective)
            with alone, dropping(self.training.drops):  # backward, too: what was not held is computed again there
                loss = self.objective(batch) / len(batches)
                self.accelerator.backward(loss)
            total += loss.detach()
        length = full(norm_of_gradients(self.net))
        if self.training.clip is not None:
            length = full(self.accelerator.clip_grad_norm_(self.net.parameters(), self.training.clip))
        value = float(self.accelerator.reduce(total, "mean"))
        rate = self.optimizer.param_groups[0]["lr"]
        self.watch.step(len(self.history) + 1, value, float(length), rate, self.accelerator.scaler is not None)
        set_rate(self.optimizer, self.training.rate(len(self.history)))
        self.stepper.step()
        self.stepper.zero_grad()
        if self.average is not None:
            self.average.step(self.net)
        return value

    def _sound(self) -> None:
        resharded(self.net)
        self.watch.state(len(self.history), self.net, self.average, self.optimizer)

    def _rehearse(self, pruner: Pruner[nn.Module]) -> None:
        """Find out now that the hand-off cannot be proved, not after all steps."""
        try:
            pruner.rehearse(self.order.strict)
        except (RewriteError, VerifyError) as e:
            raise type(e)(f"{e} (found after the first step, so that no training is lost)") from e

    def _told(self, batch: Any, loss: float) -> Told:
        """Move the masks, and hand over when they are where they should be."""
        if self.pruner is None:
            return self.history.add(loss, {})
        told = self.pruner.step(batch, loss)
        if self.teacher is not None:
            self.teacher.follow(self.pruner.mask)
        if self.pruner.done:
            self._hand_off(self.pruner)
        return told

    def _hand_off(self, pruner: Pruner[nn.Module]) -> None:
        plan = pruner.flow.plan
        self._sound()
        aside = self.projections.aside(self.optimizer) if self.projections is not None else contextlib.nullcontext()
        try:
            with aside:
                verified = {"verify": self.order.verify, "strict": self.order.strict}
                small = pruner.finish(self.optimizer, self.average, **verified, shard=self.sharded)
        except FxPruneError as e:
            raise kept(e, self.net, len(self.history), self._write) from e
        self.net = small
        to_train(small, self.training.drops)
        self.plans, self.pruner = (report(self.net).plan,), None
        if self.teacher is not None:
            self.teacher.cut(plan.kept(pruner.graph), self.optimizer)
        self._prepare()

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def _checkpoint(self, step: int) -> None:
        if self.checkpoints and (step % self.training.checkpoint_every == 0 or step == self.training.total):
            self._sound()
            self._write()

    def _write(self) -> Path:
        """All that the run needs to go on, or where there is no folder for it the weights."""
        if not self.checkpoints:
            return saved_beside(whole_state(self.net))
        return self.checkpoints.write(len(self.history), self._shared(), self._own(), self._shards)

    def _shards(self, folder: Path) -> None:
        if self.sharded:
            write_shards(folder, self.net, self.optimizer, self.average)

    def _shared(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "run": self.name,
            "samples": self.samples,
            "plans": [p.to_json() for p in self.plans],
            "model": {} if self.sharded else self.net.state_dict(),
            "optimizer": self._rates() if self.sharded else self.optimizer.state_dict(),
            "average": self.average and ({"taken": self.average.taken} if self.sharded else self.average.state_dict()),
            "scaler": scaler and scaler.state_dict(),
            "projections": self.projections and [p.detach() for p in self.projections.matrices],
        }

    def _rates(self) -> list[dict[str, Any]]:
        """The options of the optimizer's groups."""
        return [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]

    def _own(self) -> dict[str, Any]:
        return {
            "pruner": self.pruner and self.pruner.state_dict(),
            "history": None if self.pruner else self.history.state_dict(),
            "stream": self.stream.state_dict(),
            "rng": rng_state(),
            # Running statistics are those of each process.
            "buffers": dict(self.net.named_buffers()),
            "averaged": {n: self.average.values[n] for n in self._averaged_buffers()} if self.average else {},
        }

    def _averaged_buffers(self) -> list[str]:
        assert self.average is not None
        return [n for n, _ in self.net.named_buffers() if n in self.average.values]

    def _resume(self, shared: dict[str, Any], own: dict[str, Any], path: Path) -> None:
        if in_parts(path):
            read_shards(path, self.net, self.optimizer, self.average)
            for group, held in zip(self.optimizer.param_groups, shared["optimizer"], strict=True):
                group.update(held)
        else:
            share_out(shared, self.net, self.optimizer, self.average)
        for name, buffer in self.net.named_buffers():
            buffer.copy_(own["buffers"][name])
        if self.projections is not None:
            self.projections.load(shared["projections"])
        if self.average is not None:
            self.average.load_state_dict({**shared["average"], "values": self.average.values})
            self.average.values.update({n: own["averaged"][n].to(self.average.values[n]) for n in own["averaged"]})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(shared["scaler"])
        if self.pruner is None:
            self.history.load_state_dict(own["history"])
        else:
            self.pruner.load_state_dict(own["pruner"])
            if self.teacher is not None:
                self.teacher.follow(self.pruner.mask)
        self.stream.load_state_dict(own["stream"])
        set_rng_state(own["rng"])

    # ---- the end --------------------------------------------------------------------------------------------------

    def _small(self) -> nn.Module:
        """The result: with averaged weights, where the model was, in its modes, with its report."""
        self._sound()
        if self.average is not None:
            self.average.copy_to(self.net)
        self.net = whole(self.net)
        self.net.to(self.place)
        for name, module in self.net.named_modules():
            module.training = self.modes.get(name, False)
        attach(self.net, replace(report(self.net), history=self.history, seed=self.order.seed))
        try:
            attach(self.net, replace(report(self.net), picture=self._picture()))
        except FxPruneError as e:
            raise kept(e, self.net, len(self.history), self._write) from e
        return transplant(self.given, self.net) if self.order.inplace else self.net

    def _picture(self) -> str:
        if self.training.picture is None:
            return ""
        if self.accelerator.is_main_process:
            draw(self.history, Path(self.training.picture))
        return str(self.training.picture)
