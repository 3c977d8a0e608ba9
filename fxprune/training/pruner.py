"""`Pruner`: prune a model while your own loop trains it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.adapter import find_adapter
from fxprune.arguments import COUNT, MAPPING, MODULE, Kind, read_from, takes
from fxprune.errors import CriterionError, InputsError, PluginError, SaveError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import ExampleInputs, require_whole, sharded
from fxprune.graph.offloading import require_unmoved
from fxprune.graph.outputs import Wanted
from fxprune.graph.sharding import everywhere, resharded, shard_like
from fxprune.graph.turns import in_turn
from fxprune.masking.live import LiveMasks
from fxprune.planning.budget import Budget
from fxprune.planning.limits import Limits
from fxprune.planning.options import gathered
from fxprune.planning.ranking import per_cost, scope_of
from fxprune.planning.selectors import as_items, named
from fxprune.pruning.finish import finished
from fxprune.pruning.given import seeing
from fxprune.pruning.prune import settled
from fxprune.reporting.history import History, Told
from fxprune.reporting.report import attach, report
from fxprune.reporting.trajectories import draw
from fxprune.scoring import distributed as ranks
from fxprune.scoring.batches import empty, fewer
from fxprune.scoring.entire import entire, kept
from fxprune.scoring.identity import differences, told
from fxprune.scoring.saliency import Normalization
from fxprune.scoring.score import DEFAULT_CRITERION, WEIGHTS, Criterion, Scores, needs_of, score, takes_shards
from fxprune.scoring.streaming import as_batches
from fxprune.scoring.timesteps import Timesteps
from fxprune.training.average import carry_average
from fxprune.training.carry_over import Carry
from fxprune.training.scheduler import Flow, Problem, Scheduler, begun, scheduler_of
from fxprune.training.serialization import from_plain, to_plain

M = TypeVar("M", bound=nn.Module)
LOSS = Kind(
    "a number, or a tensor that holds one, or None",
    lambda v: (
        v is None or (isinstance(v, Tensor) and v.numel() == 1) or (isinstance(v, Real) and not isinstance(v, bool))
    ),
)
NAMES = ("ignore", "round_to", "min_width", "max_ratio", "exact_norms", "scope")  # of the limits that it keeps to


class Pruner(Generic[M]):
    """Masks a model's channels while it trains, and cuts them out at the end.

        pruner = fxprune.Pruner(model, scheduler="soft", ratio=0.4, steps=2000, loss=loss)
        for batch in loader:
            loss(model, batch).backward()
            optimizer.step(); optimizer.zero_grad()
            pruner.step(batch)
            if pruner.done: break
        small = pruner.finish(optimizer=optimizer)

    The model trains as it is: its parameters, names, hooks and wrappers (DDP, `torch.compile`) stay.  Under several
    processes each scores its own batches, and the scores of all are averaged, so that every process makes one plan.
    One that `fully_shard` (FSDP2) has shared out trains in shards; each process has it whole for a while here, in
    `finish`, and where the criterion sees more than shards show.

    Args:
        model: the model that trains, sharded or not, or DDP around it.
        scheduler: a name (see `fxprune list`), or an instance with options, such as `Soft(refreshes=16)`.
        criterion: see `fxprune.prune`.
        ratio: the share of `of` to remove in the end.
        of: see `fxprune.plan`.
        steps: how many calls of `step` the schedule takes.
        data: batches for the criterion; None: the last `remember` batches that `step` was given.
        loss: `loss(model, batch) -> scalar` for the criterion, whatever your loop trains with; None: the adapter's.
        timesteps: which times of a diffusion process the adapter's loss sees; see `fxprune.prune`.
        example_inputs: see `fxprune.trace`.
        outputs: see `fxprune.trace`.
        attention: see `fxprune.trace`.
        remember: how many batches to keep for scoring.
        normalize: see `fxprune.score`.
        seed: of the criterion's random numbers.
        limits: what plans keep to, in one value.
        keywords: or one by one: `ignore` (see `fxprune.prune`), `round_to`, `min_width`, `max_ratio`, `exact_norms`,
            `scope` (see `fxprune.plan`).

    Attributes:
        graph: the model's channels.
        flow: the run of the scheduler; its `mask` holds one number a channel.
        history: figures of all steps, a sequence of `Told`; after `finish` the model's report has it too.

    Raises:
        BudgetError: the ratio cannot be reached; at once, not after training.
        InputsError, PluginError, TraceError: for bad input.
    """

    @takes(model=MODULE, steps=COUNT, remember=COUNT)
    def __init__(
        self,
        model: M,
        scheduler: str | Scheduler = "soft",
        criterion: str | type[Any] | Criterion = DEFAULT_CRITERION,
        ratio: float = 0.4,
        *,
        steps: int,
        of: str = "params",
        data: Iterable[Any] | None = None,
        loss: Callable[[nn.Module, Any], Any] | None = None,
        timesteps: str | Timesteps | None = None,
        example_inputs: ExampleInputs | None = None,
        outputs: Wanted | None = None,
        attention: str = "heads",
        remember: int = 4,
        normalize: Normalization | None = None,
        seed: int = 0,
        progress: bool = False,
        limits: Limits | None = None,
        **keywords: Any,
    ) -> None:
        if unknown := [k for k in keywords if k not in (*NAMES, "shape")]:
            raise InputsError(f"Pruner() knows no {unknown[0]!r}; its limits are {', '.join(NAMES)}")
        limits = gathered(Limits, limits, keywords)
        if limits.ratios is not None:
            raise InputsError("a Pruner gives every group what its scores say; leave ratios= out of its limits")
        if limits.shape != "free":
            raise InputsError(
                f"shape={limits.shape!r:.60} asks the model's constructor, and a Pruner has masks alone: call "
                "fxprune.prune(model, shape=..., steps=...), which cuts first and trains after"
            )
        if steps < 1:
            raise InputsError(f"steps={steps}: pass how many times step() will be called, such as steps=2000")
        self.model = model
        self.net: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.shards = sharded(self.net)
        self.criterion, self.normalize, self.seed, self.progress = criterion, normalize, seed, progress
        self.scope, self.loss = limits.scope, loss
        if self.scope in ("knapsack", "global"):
            limits = replace(limits, scope=None)  # costs count below; the planner ranks by the other scopes only
        chosen = scheduler_of(scheduler)
        self.batches: deque[Any] = deque(maxlen=remember)
        self.data: Any = as_batches(data)
        self.given, self.scored = data is not None, ""
        self.notes: tuple[str, ...] = ()
        self.unscored: frozenset[str] | None = None
        with in_turn, ranks.told():
            with entire(self.net) as net:
                require_whole(net)
                require_unmoved(net)
                adapter = seeing(find_adapter(net), timesteps, loss is None)
                if loss is None:
                    self.loss = adapter.loss_of(net, seed)
                _check_needs(criterion, self.loss)
                stay = named(net, limits.ignore)
                limits = replace(limits, ignore=(*stay, *adapter.protect(net)))
                budget = Budget(ratio, of)
                self.graph: ChannelGraph = settled(net, budget, limits, example_inputs, attention, stay, outputs).graph
            del net
            self.masks = LiveMasks(self.net, self.graph)
        limits = replace(limits, ignore=(*as_items(limits.ignore), *self._held_tensors()))
        self.problem = Problem(self.graph, ratio, steps, of, limits)
        try:
            self.flow: Flow = begun(chosen, self.problem)
        except Exception:
            self.masks.detach()
            raise
        self.history = History([g.name for g in self.graph.groups])
        groups = {g.name: len(g) for g in self.graph.groups}
        asked: dict[str, Any] = {"scheduler": chosen, "criterion": criterion, "ratio": ratio, "of": of}
        asked |= {"steps": steps, "seed": seed}
        asked |= {"groups": groups, "loss": loss, "normalize": normalize, "limits": limits, "remember": remember}
        self.made = {name: told(value) for name, value in asked.items()}

    # ---- while training -----------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the schedule is over and `finish` can be called."""
        return self.flow.done

    @takes(loss=LOSS)
    def step(self, batch: Any = None, loss: Tensor | float | None = None) -> Told:
        """Call this after each `optimizer.step()`.

        Args:
            batch: the batch just trained on (kept for scoring), or its loss, a tensor of no dimensions.
            loss: its loss, for the history.

        Raises:
            CriterionError: the criterion has no score for a group that it scored before.
            InputsError: the criterion needs a batch, and none was given, or an empty one; another process is gone.
        """
        if ranks.several() and sharded(self.net) != self.shards:
            raise InputsError(
                f"fully_shard() was called on this {type(self.net).__name__} after its masks were put on: call it "
                "first, and make the Pruner afterwards"
            )
        if isinstance(batch, Tensor) and batch.dim() == 0:
            batch, loss = None, batch
        if batch is not None and not self.given:
            if empty(batch):
                raise InputsError(
                    f"the batch given to step() is empty in process {ranks.rank()} of {ranks.number()}; every process "
                    "needs a sample at least: use larger batches, or fewer processes"
                )
            self.batches.append(batch)
        if not self.done:
            if self.flow.due:
                self.flow.refresh(self._scores())
            self._move()
        value = float(loss.detach()) if isinstance(loss, Tensor) else loss
        return self.history.add(value, self.flow.told(), self.problem.means(self.flow.mask))

    @property
    def mask(self) -> np.ndarray[Any, Any]:
        """One number for every component of the graph; those that cannot be pruned have one."""
        full = np.ones(int(self.graph.component.max()) + 1)
        full[self.problem.components] = self.flow.mask
        return full

    @takes()
    def picture(self, path: str | Path) -> Path:
        """Draw the run so far into a file (PNG, SVG, PDF): masks by group, budget, energy and loss.

        Raises:
            InputsError: no step is taken yet, or matplotlib is not installed.
        """
        return draw(self.history, path)

    def _move(self) -> None:
        self.flow.step()
        self.masks.set(self.mask)
        if self.flow.decay is not None:
            self._shrink(self.flow.decay)

    @torch.no_grad()
    def _shrink(self, decay: np.ndarray[Any, Any]) -> None:
        """Multiply every slice of every channel by 1 − its decay."""
        named = dict(resharded(self.net).named_parameters())
        for group, own in zip(self.graph.groups, np.split(decay, self.problem.starts[1:-1]), strict=True):
            if own.any():
                for s in group.slices:
                    if s.tensor in named:
                        _scale(named[s.tensor], s.axis, s.positions, 1 - own)

    def _scores(self) -> Mapping[str, np.ndarray[Any, Any]]:
        # What each process trains on is its part of one batch; data that were given are whole in each.
        parts = contextlib.nullcontext() if self.given else ranks.parts()
        with self._scored() as net, parts:
            scores = score(
                self.graph,
                net,
                self.criterion,
                data=self._sample(),
                loss=self.loss,
                normalize=self.normalize,
                seed=self.seed + self.flow.taken,
                progress=self.progress,
            )
        self._note_unscored(scores)
        self.scored, self.notes = scores.criterion, scores.notes
        values, of = scores.values, self.problem.of
        if scope_of(self.scope, scores, of) == "knapsack":
            values = per_cost(self.problem.cost, of, values, scores.unscored)
        return self._agreed(values)

    @contextlib.contextmanager
    def _scored(self) -> Iterator[nn.Module]:
        """The model to score, whose gradients pass the masks: one in shards is put together if the criterion asks."""
        apart = self.shards and not takes_shards(self.criterion)
        whole = self.masks.copied() if apart else contextlib.nullcontext(self.masks)
        with ranks.told(), whole as masks, masks.straight_through():
            yield masks.model

    def _sample(self) -> Any:
        """The batches that this refresh looks at; streamed ones are read whole."""
        held = self.data if self.given else list(self.batches)
        if not isinstance(held, (list, tuple)):
            return held
        return fewer(held, self.flow.sample) if held else None

    def _note_unscored(self, scores: Scores) -> None:
        """A criterion may have nothing to say about some groups, but then from the first time on."""
        without = frozenset(scores.unscored)
        lost = without - (without if self.unscored is None else self.unscored)
        if lost:
            raise CriterionError(
                f"{scores.criterion} scored {len(lost)} groups before and has no score for them after step "
                f"{self.flow.taken}, such as {min(lost)!r}; it must score what it scored at first, masks or not: use "
                "another criterion, or report this if it is one of fxprune's"
            )
        self.unscored = without

    def _agreed(self, values: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, np.ndarray[Any, Any]]:
        """The mean over processes (which the built-in criteria have taken already), the same bits in each of them."""
        if not ranks.several():
            return values
        flat = torch.from_numpy(self.problem.flat(values)).to(next(self.net.parameters()).device)
        ranks.add_up([flat])
        return self.problem.by_group((flat / ranks.number()).cpu().numpy())

    def rehearse(self, strict: bool = False) -> None:
        """Cut a copy of the model as it is now by magnitude, and prove it: would `finish` hold?

        Raises:
            RewriteError, VerifyError: it would not; the model is as it was.
        """
        with self.masks.off(), entire(self.net) as net:
            scores = score(self.graph, net, "magnitude")
            finished(net, self.graph, self.problem.plan(scores.values), True, strict, self.seed)

    # ---- the end ------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def finish(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        ema: Any = None,
        *,
        verify: bool = True,
        strict: bool = False,
        shard: bool = False,
    ) -> M:
        """The dense model: what the masked one computes, without the channels that are gone.

        Args:
            optimizer: goes on with the small model, in place, its state cut by the plan.
            ema: averaged weights that go on too, in place: an `fxprune.Average`, diffusers' `EMAModel` or torch's
                `AveragedModel`.
            verify: prove masked = dense.
            strict: see `fxprune.prune`.
            shard: share it out over the processes as the model was (`fxprune.shard_like`), and its optimizer's state
                too; else every process has all of it.

        Raises:
            PluginError: steps are left.
            InputsError: `shard`, and the model is not sharded.
        """
        plan = self.flow.plan if self.done else None
        if plan is None:
            left = self.problem.steps - self.flow.taken
            raise PluginError(
                f"the schedule is not over: {left} of {self.problem.steps} steps are left; take them first"
            )
        if shard and not self.shards:
            raise InputsError(f"shard=True: this {type(self.net).__name__} is not sharded; leave shard= out")
        plan = replace(plan, criterion=self.scored)
        self.masks.detach()
        with ranks.told(), entire(self.net) as net:
            small = finished(net, self.graph, plan, verify, strict, self.seed)
            kept(shard_like(small, self.net) if shard else small)
        carry = Carry(self.net, small, self.graph, plan)
        if optimizer is not None:
            carry.optimizer(optimizer)
        if ema is not None:
            carry_average(carry, ema)
        attach(small, replace(report(small), history=self.history, scoring=self.notes))
        return small  # type: ignore[return-value]

    def detach(self) -> None:
        """Give up: take the masks off and leave the model as training left it."""
        self.masks.detach()

    # ---- resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on bit for bit, beside the model's and the optimizer's own state.

        Tensors, numbers and text: `torch.load(weights_only=True)` reads what `torch.save` made of it.

        Raises:
            SaveError: the batches kept for scoring hold something else.
        """
        batches = [] if self.given else list(self.batches)
        own = {"flow": self.flow.state_dict(), "batches": batches, "history": self.history.state_dict()}
        unscored = None if self.unscored is None else sorted(self.unscored)
        told = {"scored": self.scored, "notes": list(self.notes), "unscored": unscored, "made": self.made}
        state: dict[str, Any] = to_plain({**own, **told})
        return state

    @takes(state=MAPPING)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with a pruner made by the same arguments.

        Raises:
            SaveError: it was made by others, or it is none.
        """
        with read_from("state", state, "the state of a pruner made by the same arguments"):
            state = from_plain(state)
            if what := differences(state.get("made", {}), self.made):
                raise SaveError(f"this state is of another pruner: {what}; make it by the same arguments")
            self.scored, self.notes = state["scored"], tuple(state.get("notes", ()))
            self.unscored = None if state.get("unscored") is None else frozenset(state["unscored"])
            self.flow.load_state_dict(state["flow"])
            if not self.given:
                self.batches.extend(state["batches"])
            self.history.load_state_dict(state["history"])
        self.masks.set(self.mask)

    def _held_tensors(self) -> list[str]:
        return [s.tensor for name in self.masks.held for s in self.graph.group(name).slices]


def _check_needs(criterion: Any, loss: Any) -> None:
    if "loss" in needs_of(criterion) and loss is None:
        raise InputsError(
            "the criterion needs a loss: pass loss=, a callable loss(model, batch) -> scalar tensor; or choose one "
            f"that looks at weights alone: {WEIGHTS}"
        )


def _scale(p: nn.Parameter, axis: int, positions: np.ndarray[Any, Any], factor: np.ndarray[Any, Any]) -> None:
    along = torch.ones(p.shape[axis], dtype=torch.float64)
    along[torch.from_numpy(positions.reshape(-1))] = torch.from_numpy(np.repeat(factor, positions.shape[1]))
    shaped = along.to(device=p.device, dtype=p.dtype).view([-1 if d == axis else 1 for d in range(p.dim())])
    p.mul_(everywhere(shaped, p))
