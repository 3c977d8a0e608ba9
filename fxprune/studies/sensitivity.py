"""How much a network minds losing channels, part by part: the loss, or any metric, against the share that is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxprune.adapter import find_adapter
from fxprune.arguments import RATIOS, takes
from fxprune.errors import CriterionError, FxPruneError, InputsError, VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import ExampleInputs, evaluating, seed_torch
from fxprune.graph.offloading import at_rest
from fxprune.graph.turns import in_turn
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost
from fxprune.planning.plan import Plan
from fxprune.planning.ranking import lost, size, touched
from fxprune.planning.removals import Bounds, Removals, sequences
from fxprune.planning.search import Cut
from fxprune.planning.selectors import Ignore, ignored, named, require_known
from fxprune.pruning.given import seeing
from fxprune.pruning.prune import trace
from fxprune.rewriting.rewrite import UnsolvedError, rewrite
from fxprune.scoring.batches import loss_on, missing, require_some
from fxprune.scoring.context import Loss
from fxprune.scoring.identity import of_data, of_model, told
from fxprune.scoring.score import DEFAULT_CRITERION, WEIGHTS, Criterion, needs_of, score
from fxprune.scoring.streaming import as_batches
from fxprune.scoring.timesteps import Timesteps
from fxprune.scoring.use import looking
from fxprune.studies.sensitivity_file import DENSE, Kept, Point
from fxprune.studies.sensitivity_table import Curve, Sensitivity
from fxprune.studies.shared import shared
from fxprune.verification import check_dense

Floats = npt.NDArray[np.float64]
Metric: TypeAlias = Callable[[nn.Module], float]
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


@takes(shares=RATIOS)
def sensitivity(
    model: Any,
    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION,
    *,
    shares: Sequence[float] = SHARES,
    example_inputs: ExampleInputs | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    timesteps: str | Timesteps | None = None,
    metric: Metric | None = None,
    higher_is_better: bool = False,
    attention: str = "heads",
    ignore: Ignore = (),
    samples: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measure what happens when one part of a model after the other loses its lowest-scored channels.

    Every part is cut out of the dense model by itself and the rest left as it is; nothing is trained.

    Args:
        model: as for `fxprune.prune`; it is left as it is.
        criterion: which channels go first; what makes up for channels that go (`obs`) is left out, since the rest stays
            as it is.
        shares: of a part's channels to remove, in (0, 1); taken as nearly as its constraints allow.
        example_inputs: as for `fxprune.prune`.
        data: batches for the loss and for the criterion; None: the model's adapter makes `samples` of them.
        loss: `loss(model, batch) -> scalar`, averaged over the batches; None: the adapter's.
        timesteps: as for `fxprune.prune`.
        metric: `metric(model) -> number`, measured in place of the loss.
        higher_is_better: of the metric, such as an accuracy.
        attention: as for `fxprune.prune`.
        ignore: as for `fxprune.prune`.
        samples: as for `fxprune.prune`.
        seed: as for `fxprune.prune`.
        out: folder for sensitivity.csv, shared by all processes that call this with the same arguments, and that a
            later call goes on from, after a kill too; None: nothing is written.
        progress: as for `fxprune.prune`.

    Raises:
        InputsError: data or a loss are missing, or `out` holds another measurement.
        SaveError: `out` cannot be written to.
        CriterionError: the dense model's metric is not finite.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.ones(2, 4)
    >>> table = fxprune.sensitivity(
    ...     net, shares=[0.5], example_inputs=x, data=[x], loss=lambda net, x: net(x).pow(2).mean(), progress=False
    ... )
    >>> table.curves[0].groups, table.curves[0].shares
    (('0.weight:0',), (0.5,))
    """
    if not shares or not all(0 < s < 1 for s in shares):
        raise InputsError(f"shares={tuple(shares)} must be numbers in (0, 1), such as {SHARES}")
    adapter = seeing(find_adapter(model), timesteps, loss is None or data is None)
    net = adapter.unwrap(model)[0]
    with in_turn, at_rest(net):
        graph = trace(net, example_inputs, attention=attention)
        require_known(graph, stay := named(net, ignore))
        if data is None and (metric is None or "data" in needs_of(criterion)):
            data = adapter.calibration(model, samples, seed, progress)
        batches = as_batches(data)
        require_some(batches)
        given, loss = loss, adapter.loss_of(model, seed) if loss is None else loss
        what = {"model": of_model(net), "criterion": told(criterion), "shares": told(sorted(shares))}
        what |= {"data": of_data(batches), "loss": told(given), "metric": told(metric), "attention": attention}
        what |= {"ignore": told(ignore), "samples": str(samples), "seed": str(seed)}
        what |= {"example_inputs": told(example_inputs)}
        what |= {"timesteps": told(timesteps)} if timesteps is not None else {}
        if metric is None:
            if batches is None or loss is None:
                raise InputsError(
                    f"{missing('sensitivity', batches is None, loss is None)}; or measure something else: metric=, a "
                    f"callable metric(model) -> number, with {WEIGHTS}"
                )
            metric = _MeanLoss(loss, batches, seed)
        scores = score(graph, net, criterion, data=batches, loss=loss, seed=seed, progress=progress)
        allowed = [not out for out in ignored(graph, (*stay, *adapter.protect(net)))]
        parts = _parts(graph, scores.values, allowed)
        todo = [_Part.of(graph, seq, shares) for seq in parts]
        kept = Kept(what, name_of(metric), None if out is None else Path(out))

        def done(part: _Part) -> bool:
            kept.look()
            return kept.holds(part.name, part.shares)

        if not kept.holds(DENSE, [0.0]) or not all(kept.holds(p.name, p.shares) for p in todo):
            kept.add(DENSE, [0.0], [_base(net, metric)])
        pieces = shared(kept.folder, {part.name: part for part in todo}, done)
        for part in _track(pieces, len(todo), progress):
            values = [_measure(metric, _dense(net, graph, plan)) for plan in part.plans(graph, scores.criterion)]
            kept.add(part.name, part.shares, values)
    curves = tuple(part.curve(kept.values) for part in todo)
    return Sensitivity(type(net).__name__, name_of(metric), kept.values[DENSE, 0.0], curves, higher_is_better)


def _base(net: nn.Module, metric: Metric) -> float:
    with looking(net, "sensitivity") if isinstance(metric, _MeanLoss) else contextlib.nullcontext():
        base = _measure(metric, net)
    if not np.isfinite(base):
        raise CriterionError(
            f"the {name_of(metric)} of the dense {type(net).__name__} is {base}; check the weights and data"
        )
    return base


@dataclass(frozen=True)
class _MeanLoss:
    """Mean loss over batches; each batch draws the same random numbers every time."""

    loss: Loss
    batches: Iterable[Any]
    seed: int

    def __call__(self, model: nn.Module) -> float:
        losses = []
        for i, batch in enumerate(self.batches):
            seed_torch(model, self.seed + i)
            losses.append(loss_on(self.loss, model, batch))
        return sum(losses) / len(losses)


def name_of(metric: Metric) -> str:
    """What to call it: a lambda has no name worth telling."""
    if isinstance(metric, _MeanLoss):
        return "loss"
    name = str(getattr(metric, "__name__", type(metric).__name__))
    return "metric" if name == "<lambda>" else name


def _measure(metric: Metric, model: nn.Module) -> float:
    with torch.no_grad(), evaluating(model), torch.random.fork_rng():
        if isinstance(metric, _MeanLoss):
            return metric(model)
        try:
            return float(metric(model))
        except (FxPruneError, torch.OutOfMemoryError):
            raise
        except Exception as e:
            raise InputsError(f"metric(model) failed, or gave no number: {type(e).__name__}: {e}") from e


def _parts(graph: ChannelGraph, values: Mapping[str, Floats], allowed: Sequence[bool]) -> list[Removals]:
    """The removals of every part: with exact norms where there are such, else regrouped."""
    exact = sequences(graph, values, Bounds(1.0), allowed)
    covered = {g for seq in exact for g in touched(seq)}
    rest = [ok and g not in covered for g, ok in enumerate(allowed)]
    every = {norm.node for norm in graph.facts.norm_groups}
    return exact + sequences(graph, values, Bounds(1.0), rest, every)


@dataclass(frozen=True)
class _Part:
    """What shrinks by itself: its removals, and after how many of them it is measured."""

    seq: Removals
    groups: tuple[str, ...]
    channels: int
    steps: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, graph: ChannelGraph, seq: Removals, shares: Sequence[float]) -> _Part:
        """Measured at every share that its removals come near to."""
        after = np.concatenate([[0.0], lost(graph, seq)])
        steps = sorted({int(np.abs(after - share).argmin()) for share in shares} - {0}) or [1]
        groups = tuple(graph.groups[g].name for g in touched(seq))
        return cls(seq, groups, size(graph, seq), tuple(steps), tuple(float(after[k]) for k in steps))

    @property
    def name(self) -> str:
        return self.groups[0]

    def plans(self, graph: ChannelGraph, criterion: str) -> Iterator[Plan]:
        return (_plan(graph, self.seq.first(k), criterion) for k in self.steps)

    def curve(self, values: Mapping[Point, float]) -> Curve:
        return Curve(self.groups, self.channels, self.shares, tuple(values[self.name, s] for s in self.shares))


def _plan(graph: ChannelGraph, seq: Removals, criterion: str) -> Plan:
    removed = np.bincount(seq.group, minlength=len(graph.groups)).astype(float)
    cost = CostModel(graph)
    share = 1 - cost.of("params", removed) / dense_cost(cost, "params")
    return Plan.of_cut(cost, Cut(seq.group, seq.channel, removed, share), share, "params", criterion)


def _dense(net: nn.Module, graph: ChannelGraph, plan: Plan) -> nn.Module:
    """The model without the channels of a plan, its own forward kept where that can follow."""
    try:
        small = rewrite(net, graph, plan).model
        if check_dense(net, small, graph, plan).ok:
            return small
    except (UnsolvedError, VerifyError):
        pass
    return rewrite(net, graph, plan, forward="graph").model


def _track(parts: Iterable[_Part], number: int, progress: bool) -> Iterable[_Part]:
    if not progress:
        return parts
    from rich.progress import track

    return track(parts, description="sensitivity", total=number)
