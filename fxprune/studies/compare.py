"""Criteria side by side on one model: loss after pruning, time and memory to score, over ratios and seeds.

    compare(model, ["magnitude", "taylor"], [0.3, 0.5], out="here")
        here/compare.csv    one row a criterion, ratio and seed, written as soon as it is there
        here/compare.png    the loss by ratio, time and memory

    compare(model, ["taylor"], [0.5], schedulers=["one_shot", "soft"], steps=500, data=loader)
        the same after training: every criterion by every scheduler

    compare(model, ["taylor"], [0.5], models={"mine": net})
        finished networks beside them, however they were made: measured alike

A comparison that was cut off goes on where it stopped: rows that are in the file are not made again, but for those
that hold an error.  Rows of other weights, data, losses or options are refused.  Several processes that make the same
call share the rows out (see `fxprune.studies.shared`), and each returns all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from fxprune.adapter import Adapter, find_adapter
from fxprune.arguments import RATIOS, Kind, takes
from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import ExampleInputs, evaluating, seed_torch
from fxprune.graph.offloading import at_rest
from fxprune.graph.turns import in_turn
from fxprune.planning.budget import Budget
from fxprune.planning.costs.counted import CountedCosts, dense_cost
from fxprune.planning.limits import Limits
from fxprune.planning.planner import planned
from fxprune.planning.selectors import Ignore, named, require_known
from fxprune.pruning.finish import finished
from fxprune.pruning.order import Order, Scoring
from fxprune.pruning.prune import settled_on, trace
from fxprune.pruning.timing import glanced
from fxprune.reporting.report import report
from fxprune.rewriting.compensation import compensated
from fxprune.scoring.batches import loss_on, missing, require_some
from fxprune.scoring.context import Loss
from fxprune.scoring.identity import of_data, of_model, told
from fxprune.scoring.preservation import attributes_kept
from fxprune.scoring.score import COMPARED, Criterion, Scores, score
from fxprune.scoring.streaming import as_batches
from fxprune.scoring.use import looking
from fxprune.studies.asked import Runs, labelled, networks, runs_of, trainer
from fxprune.studies.comparison import Compared, Comparison, Table
from fxprune.studies.peak_memory import Peak
from fxprune.studies.shared import shared
from fxprune.training.options import Training
from fxprune.training.scheduler import Scheduler, scheduler_of

CRITERIA = Kind("a list of names or criteria", lambda v: isinstance(v, Sequence) and not isinstance(v, str))
MODELS = Kind("a dict of name -> model, or None", lambda v: v is None or isinstance(v, Mapping))
Todo: TypeAlias = tuple[str, int, str]  # criterion or given model, seed, scheduler
SCHEDULERS = Kind("a list of names or schedulers", lambda v: isinstance(v, (list, tuple)))
TRAINING = Kind("an fxprune.Training, or None", lambda v: v is None or isinstance(v, Training))
HELD_OUT = 1 << 20  # seed of the samples that the loss is measured on, where an adapter draws them


@takes(criteria=CRITERIA, models=MODELS, ratios=RATIOS, schedulers=SCHEDULERS, training=TRAINING)
def compare(
    model: Any,
    criteria: Sequence[str | Criterion] = COMPARED,
    ratios: Sequence[float] = (0.3, 0.5),
    *,
    models: Mapping[str, Any] | None = None,
    schedulers: Sequence[str | Scheduler] = (),
    steps: int | None = None,
    training: Training | None = None,
    seeds: int = 1,
    of: str = "params",
    example_inputs: ExampleInputs | None = None,
    data: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    loss: Loss | None = None,
    attention: str = "heads",
    ignore: Ignore = (),
    samples: int = 8,
    out: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Prune a model by several criteria (and schedulers) to several ratios, and measure its loss and speed.

    All criteria see the same graph, batches and limits.  A criterion that fails has its error in its rows, and the
    others go on.  Finished models, of your own or of another library, stand beside them.

    Args:
        model: as for `fxprune.prune`; it is left as it is.
        criteria: registered names or criteria; `()` where `models` alone are to be measured.
        ratios: shares of `of` to remove, in (0, 1).
        models: name -> a finished model (or pipeline) that does what `model` does, pruned and trained in whatever way:
            its loss is measured on the same batches, its costs and its speed on the same example inputs.
        schedulers: names or schedulers, with `steps`: every criterion is trained by each; none: as `("one_shot",)`.
        steps: of training on `data`; None: the loss is that before any training.
        training: how, in place of `steps`.
        seeds: how many times; each draws other random numbers, and other samples if the adapter draws them.
        of: as for `fxprune.prune`.
        example_inputs: as for `fxprune.prune`.
        data: batches for the criteria; None: the model's adapter makes `samples` of them for each seed.
        held_out: batches that the loss is measured on; None: `data`, or other samples that the adapter makes.
        loss: `loss(model, batch) -> scalar`; None: the adapter's.
        attention: as for `fxprune.prune`.
        ignore: as for `fxprune.prune`.
        samples: as for `fxprune.prune`.
        out: folder for compare.csv and compare.png, shared by all processes that call this with the same arguments, and
            that a later call goes on from; None: nothing is written.
        progress: as for `fxprune.prune`.

    Raises:
        InputsError: data or a loss are missing, or `out` holds another comparison.
        CriterionError: a criterion's name is unknown.
        BudgetError: not even the smallest ratio can be reached.

    Examples:
        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.ones(2, 4)
        >>> given = {"example_inputs": x, "data": [x], "loss": lambda net, x: net(x).pow(2).mean(), "progress": False}
        >>> made = fxprune.compare(net, ["magnitude", "random"], [0.5], **given)
        >>> [(row.criterion, row.ratio) for row in made.rows]
        [('magnitude', 0.5), ('random', 0.5)]
    """
    if not (criteria or models) or not len(ratios) or not all(0 < r < 1 for r in ratios) or seeds < 1:
        raise InputsError(
            f"criteria={list(criteria)}, ratios={list(ratios)}, seeds={seeds}: pass at least one criterion or "
            "models=, ratios in (0, 1), and a positive number of seeds"
        )
    labels = labelled(criteria)
    others = networks(models or {}, labels)
    runs = runs_of(schedulers, steps, training, data)
    adapter = find_adapter(model)
    net = adapter.unwrap(model)[0]
    with in_turn, at_rest(net):
        batches, test = as_batches(data), as_batches(held_out)
        require_some(batches)
        require_some(test, "held_out")
        drawn = _Drawn(adapter, model, samples, batches, batches if test is None else test)
        how = adapter.loss_of(model) if loss is None else loss
        what = {"model": of_model(net), "of": of, "attention": attention, "samples": str(samples)}
        what |= {"data": of_data(batches), "held_out": of_data(test), "ignore": told(ignore)}
        what |= {"loss": told(loss), "example_inputs": told(example_inputs)}
        if runs.training is not None:
            what |= {"training": told(sorted(runs.training.told().items()))}
            what |= {f"scheduler {k}": told(s) for k, s in runs.schedulers.items()}
        names = {k: told(c) for k, c in labels.items()} | {k: of_model(m) for k, m in others.items()}
        table = Table(what, names, None if out is None else Path(out))
        wanted = [(c, seed, s) for seed in range(seeds) for c in labels for s in runs.schedulers]
        wanted += [(k, 0, "") for k in others]

        def left(label: str, seed: int, scheduler: str) -> list[float]:
            if label in others:
                return [] if table.holds(Compared(label, 0.0, 0).key) else [0.0]
            return [r for r in ratios if not table.holds((label, r, seed, scheduler, runs.steps))]

        def done(piece: Todo) -> bool:
            table.look()
            return not left(*piece)

        todo = {repr(piece): piece for piece in wanted if left(*piece)}
        if todo:
            unseen = drawn.held_out()
            if how is None or unseen is None:
                raise InputsError(missing("comparing criteria", unseen is None, how is None))
            stay = named(net, ignore)
            limits = Limits(ignore=(*stay, *adapter.protect(net)))
            graph = trace(net, example_inputs, attention=attention)
            require_known(graph, stay)
            if any(label in labels for label, _, _ in todo.values()):
                graph = settled_on(graph, net, Budget(min(ratios), of), limits).graph
            trial = _Trial(net, graph, of, limits, how, unseen)
            with looking(net, "comparing criteria"):
                dense = trial.loss(net)
            for label, seed, scheduler in _track(shared(table.folder, todo, done), len(todo), progress):
                missed = left(label, seed, scheduler)
                if label in others:
                    rows: Iterable[Compared] = [trial.given(Compared(label, 0.0, 0), others[label])]
                elif runs.training is None:
                    rows = trial.rows(labels[label], label, missed, seed, drawn.batches(seed))
                else:
                    scoring = Scoring(labels[label], data=batches, loss=how)
                    own = Limits(ignore=tuple(stay))  # the adapter's are added where the model is cut
                    order = Order(Budget(0.5, of), own, scoring, example_inputs, attention=attention, progress=False)
                    rows = trial.trained(runs, scheduler, label, missed, replace(order, seed=seed))
                for row in rows:
                    table.add(row, dense)
        keys = [(c, r, s, k, runs.steps) for c in labels for k in runs.schedulers for r in ratios for s in range(seeds)]
        return table.comparison([*keys, *(Compared(k, 0.0, 0).key for k in others)])


@dataclass(frozen=True)
class _Drawn:
    """The caller's batches, or those that the adapter makes."""

    adapter: Adapter
    model: Any
    samples: int
    given: Iterable[Any] | None
    test: Iterable[Any] | None

    def batches(self, seed: int) -> Iterable[Any] | None:
        return self.given if self.given is not None else self.adapter.calibration(self.model, self.samples, seed)

    def held_out(self) -> Iterable[Any] | None:
        return self.test if self.test is not None else self.adapter.calibration(self.model, self.samples, HELD_OUT)


@dataclass(frozen=True)
class _Trial:
    """What all criteria share."""

    net: nn.Module
    graph: ChannelGraph
    of: str
    limits: Limits
    how: Loss
    unseen: Iterable[Any]

    def rows(
        self, criterion: str | Criterion, label: str, ratios: Sequence[float], seed: int, batches: Iterable[Any] | None
    ) -> Iterator[Compared]:
        """One row a ratio; an error at scoring is in all of them."""
        given: dict[str, Any] = {"data": batches, "loss": self.how, "seed": seed}
        peak = Peak(next((p.device for p in self.net.parameters()), torch.device("cpu")))
        scores: Scores | None = None
        start = time.perf_counter()
        with _noted() as failed, attributes_kept(self.net), peak:
            scores = score(self.graph, self.net, criterion, **given)
        seconds = time.perf_counter() - start
        for ratio in ratios:
            row = Compared(label, ratio, seed, seconds=seconds, memory=peak.bytes, error=failed.text)
            if scores is not None:
                with _noted() as failed_here:
                    row = self._measured(row, criterion, scores, given)
                row = row if not failed_here.text else Compared(label, ratio, seed, error=failed_here.text)
            yield row

    def _measured(self, row: Compared, criterion: Any, scores: Scores, given: dict[str, Any]) -> Compared:
        plan = planned(self.graph, scores, Budget(row.ratio, self.of), self.limits)
        base = compensated(self.graph, self.net, plan, criterion, **given)
        small = finished(base, self.graph, plan, verify=True, strict=False, seed=row.seed)
        return row.measured(self.loss(small), report(small).plan.costs, report(small).timing)

    def trained(
        self, runs: Runs, scheduler: str, label: str, ratios: Sequence[float], order: Order
    ) -> Iterator[Compared]:
        """One row a ratio, each a run of its own."""
        trained = trainer()
        assert runs.training is not None
        for ratio in ratios:
            row = Compared(label, ratio, order.seed, scheduler=scheduler, steps=runs.steps)
            start = time.perf_counter()
            with _noted() as failed:
                given = replace(order, budget=Budget(ratio, self.of))
                small = trained(self.net, scheduler_of(runs.schedulers[scheduler]), runs.training, given)
                seconds = time.perf_counter() - start
                made = report(small)
                row = replace(row, seconds=seconds).measured(self.loss(small), made.total.costs, made.timing)
            yield replace(row, error=failed.text)

    def given(self, row: Compared, other: nn.Module) -> Compared:
        """The row of a finished model, traced and timed on the dense one's example inputs."""
        with _noted() as failed:
            with at_rest(other):
                with looking(other, f"measuring {row.criterion}"):
                    loss = self.loss(other)
                now = CountedCosts(trace(other, self.graph.traced.example))
            dense = CountedCosts(self.graph)
            costs = {k: (dense_cost(dense, k), dense_cost(now, k)) for k in ("params", "macs")}
            timing = glanced(self.net, other, self.graph, costs["macs"][0])
            row = row.measured(loss, costs, timing)
        return replace(row, error=failed.text)

    def loss(self, model: nn.Module) -> float:
        """The mean over the held-out batches; each draws the same random numbers every time."""
        losses = []
        with torch.no_grad(), evaluating(model), torch.random.fork_rng():
            for number, batch in enumerate(self.unseen):
                seed_torch(model, HELD_OUT + number)
                losses.append(loss_on(self.how, model, batch))
        return sum(losses) / len(losses)


@dataclass
class _Failed:
    text: str = ""


@contextmanager
def _noted() -> Iterator[_Failed]:
    """An error within becomes text: a bad criterion must not end the comparison."""
    failed = _Failed()
    try:
        yield failed
    except Exception as e:  # noqa: BLE001 - whatever it is, it is the row's answer
        failed.text = " ".join(f"{type(e).__name__}: {e}".split())


def _track(todo: Iterable[Todo], number: int, progress: bool) -> Iterable[Todo]:
    if not progress:
        return todo
    from rich.progress import track

    return track(todo, description="comparing", total=number)
