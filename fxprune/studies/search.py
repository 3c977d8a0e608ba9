"""Search for the plan that is best by a metric of the caller's, within several budgets at once.

    search(model, metric, {"params": 0.6, "macs": 0.5}, trials=100, out="here")
        here/search.log     the study (optuna's journal), which processes share and a later call goes on with
        here/plans/7.json   the plan of candidate 7
        here/search.csv     all candidates, and search.png their picture

All candidates are made from one set of scores: which channels of a part go is decided by these, how many by the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.adapter import find_adapter
from fxprune.arguments import COUNT, FUNCTION, POSITIVE, Kind, takes
from fxprune.errors import BudgetError, CriterionError, FxPruneError, InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import ExampleInputs, evaluating, seed_torch
from fxprune.graph.outputs import Wanted
from fxprune.graph.turns import in_turn
from fxprune.planning.budget import Budget
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import COUNTED, dense_cost
from fxprune.planning.legal import legal_graph
from fxprune.planning.limits import Limits
from fxprune.planning.options import gathered
from fxprune.planning.plan import Plan
from fxprune.planning.selectors import Ignore, named, require_known
from fxprune.pruning.finish import finished
from fxprune.pruning.given import given_to, seeing
from fxprune.pruning.order import Scoring
from fxprune.pruning.prune import settled_on, trace
from fxprune.reporting.figures import check_picture
from fxprune.rewriting.compensation import compensated, makes_up
from fxprune.scoring.batches import require_some
from fxprune.scoring.context import Loss
from fxprune.scoring.identity import of_data, of_model, told
from fxprune.scoring.score import DEFAULT_CRITERION, Criterion, score
from fxprune.scoring.streaming import as_batches
from fxprune.scoring.timesteps import Timesteps
from fxprune.studies.candidates import Plans, seeds, space_of, stays
from fxprune.studies.depth import deep
from fxprune.studies.given import require_free
from fxprune.studies.search_table import Candidate, Search
from fxprune.studies.sensitivity import name_of
from fxprune.studies.sensitivity_table import Sensitivity
from fxprune.studies.trials import Claimed, Trials

CSV, PNG = "search.csv", "search.png"
NEARLY = 0.99  # of what channels alone can reach
SEARCHED = ("channel", "both")  # what a search may take out
BUDGETS = Kind(
    'a dict of measure -> the most that may stay, such as {"params": 0.6}',
    lambda v: isinstance(v, Mapping) and all(isinstance(k, str) and POSITIVE.fits(x) for k, x in v.items()),
    BudgetError,
)
SAMPLER = Kind("a sampler of optuna's, or None", lambda v: v is None or hasattr(v, "sample_relative"))
TABLE = Kind("a table of fxprune.sensitivity, or None", lambda v: v is None or isinstance(v, Sensitivity))


@takes(metric=FUNCTION, budgets=BUDGETS, trials=COUNT, sampler=SAMPLER, sensitivity=TABLE)
def search(
    model: Any,
    metric: Callable[[Any], Any],
    budgets: Mapping[str, float],
    *,
    trials: int = 64,
    higher_is_better: bool = False,
    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION,
    sensitivity: Sensitivity | None = None,
    example_inputs: ExampleInputs | None = None,
    outputs: Wanted | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    timesteps: str | Timesteps | None = None,
    attention: str = "heads",
    granularity: str = "channel",
    ignore: Ignore = (),
    round_to: int | str = 1,
    min_width: int = 1,
    max_ratio: float | None = None,
    exact_norms: bool = False,
    limits: Limits | None = None,
    samples: int = 8,
    sampler: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Search:
    """Try plans that keep to all budgets, and find those that are best by a metric.

    The scores decide which channels of a part go first, the search how much of every part goes.  The first candidates
    are the planner's own choices, one for each measure; the others are drawn from what those before them gave.  Each is
    made a dense model, proven, and measured; nothing is trained, unless the metric does so.  A criterion that corrects
    what stays (`Obs(select="gradflow")`) does so for each of them: `fxprune.apply(model, found.best, criterion=...)`
    does it again.  Shares that lead to a plan which an earlier candidate had take its metric, and nothing is run.

    Args:
        model: as for `fxprune.prune`; it is left as it is.
        metric: `metric(model) -> number`, of the pruned model (of the pipeline, if one is given), in eval mode and
            without gradients (`torch.enable_grad()` within allows these). Each call draws the same random numbers.
        budgets: measure ("params", "macs", "memory", "channels", "latency") -> the most that may stay: up to 1 a share
            of the given model's cost, above that in units of the measure. No candidate exceeds any of them.
        trials: candidates in all, those of earlier calls and of other processes included.
        higher_is_better: of the metric, such as an accuracy.
        criterion: which channels go first.
        sensitivity: a table of `fxprune.sensitivity`; the plan that it makes is tried, too.
        example_inputs: as for `fxprune.prune`.
        outputs: as for `fxprune.prune`.
        data: batches for the criterion; None: the model's adapter makes `samples` of them.
        loss: `loss(model, batch) -> scalar` for the criterion; None: the adapter's.
        timesteps: as for `fxprune.prune`.
        attention: as for `fxprune.prune`: "heads" or "head_dim".
        granularity: "channel"; or "both": how many blocks go (`graph.blocks`, the lowest scores for what they cost
            first) is found by the search, too.
        ignore: as for `fxprune.prune`.
        round_to: as for `fxprune.plan`, a number.
        min_width: as for `fxprune.plan`.
        max_ratio: as for `fxprune.plan`.
        exact_norms: as for `fxprune.plan`.
        limits: these in one value, in their place.
        samples: as for `fxprune.prune`.
        sampler: of optuna, such as `optuna.samplers.NSGAIISampler()`; None: its `TPESampler` on all shares together.
        out: folder that is shared by all processes that call this with the same arguments, and that a later call goes
            on with; None: nothing is written.
        seed: for everything drawn at random; what one process finds is the same every time.
        progress: as for `fxprune.prune`.

    Raises:
        BudgetError: the budgets are out of range, or not all in reach; tells how far one can go.
        InputsError: optuna is not installed, the metric fails for the given model, data or a loss are missing, or `out`
            holds another search.
        CriterionError: the given model's metric is not finite.

    Examples:
        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.ones(2, 4)
        >>> given = {"criterion": "magnitude", "example_inputs": x, "progress": False}
        >>> found = fxprune.search(net, lambda net: net(x).square().mean(), {"params": 0.5}, trials=2, **given)
        >>> found.best.cost("params") <= 0.5 * found.dense["params"]
        True
        >>> fxprune.apply(net, found.best, example_inputs=x)[0].out_features
        3
    """
    keywords: dict[str, Any] = {"ignore": ignore, "round_to": round_to, "min_width": min_width}
    limits = gathered(Limits, limits, keywords | {"max_ratio": max_ratio, "exact_norms": exact_norms})
    require_free(limits, "a search")
    if granularity not in SEARCHED:
        raise BudgetError(
            f"granularity={granularity!r}: a search takes {' or '.join(map(repr, SEARCHED))}; whole blocks alone are "
            'one choice for a budget, by fxprune.prune(..., granularity="block")'
        )
    with in_turn:
        adapter = seeing(find_adapter(model), timesteps, loss is None or data is None)
        net, back = adapter.unwrap(model)
        batches = as_batches(data)
        require_some(batches)
        what = {"model": of_model(net), "metric": told(metric), "budgets": told(dict(budgets)), "seed": str(seed)}
        what |= {"criterion": told(criterion), "data": of_data(batches), "loss": told(loss), "samples": str(samples)}
        what |= {"limits": told(limits), "attention": attention, "higher_is_better": str(higher_is_better)}
        what |= {"example_inputs": told(example_inputs), "outputs": told(outputs), "sampler": told(sampler)}
        what["sensitivity"] = told(sensitivity)
        what |= {"granularity": granularity} if granularity != SEARCHED[0] else {}
        what |= {"corrected": "yes"} if makes_up(criterion) else {}
        what |= {"timesteps": told(timesteps)} if timesteps is not None else {}
        trial = _Trial(net, back, metric, seed)
        base = trial.dense()
        graph = trace(net, example_inputs, attention=attention, outputs=outputs)
        require_known(graph, stay := named(net, limits.ignore))
        limits = replace(limits, ignore=(*stay, *adapter.protect(net)))
        deeper = granularity == "both"
        graph = _followed(legal_graph(graph, limits.legal_for), net, budgets, limits, deeper)
        seen = Scoring(criterion, data=batches, loss=loss, samples=samples)
        given = given_to(adapter, model, seen, seed, progress)
        scores = score(graph, net, criterion, **given)
        trial = replace(trial, criterion=criterion, given={**given, "progress": False})
        width = space_of(graph, scores, budgets, limits, reach=not deeper)
        space: Plans = deep(width, scores, limits) if deeper else width
        run = Trials(what, space.most, higher_is_better, sampler, seed, None if out is None else Path(out))
        trial.all(run, space, dict(seeds(space, scores, limits, granularity, sensitivity)), trials, progress)
        dense = {m: dense_cost(space.costs, m) for m in dict.fromkeys((*space.stay, *COUNTED))}
        rows = tuple(Candidate.of(ended) for ended in run.ended(trials))
    made = Search(type(net).__name__, name_of(metric), base, space.stay, dense, rows, higher_is_better)
    return made if out is None else _written(made, Path(out))


def _followed(
    graph: ChannelGraph, net: nn.Module, budgets: Mapping[str, float], limits: Limits, deeper: bool
) -> ChannelGraph:
    """The graph that the module's own Python can follow, as far as a trial cut to the first budget shows.

    Args:
        deeper: whether blocks may do what channels alone cannot.
    """
    measure, share = next(iter(stays(CostModel(graph), budgets).items()))
    try:
        return settled_on(graph, net, Budget(max(0.0, 1 - share), measure), limits).graph
    except BudgetError as e:
        if not deeper or not e.reachable:
            raise
        return settled_on(graph, net, Budget(NEARLY * e.reachable, measure), limits).graph


def _written(made: Search, folder: Path) -> Search:
    made.to_csv(folder / CSV)
    try:
        made.plot(check_picture(folder / PNG, "out"))
    except FxPruneError as e:
        e.kept = made
        raise
    return made


@dataclass(frozen=True)
class _Trial:
    """How a candidate is made, by a criterion that may correct what stays, and measured."""

    net: nn.Module
    back: Callable[[nn.Module], Any]
    metric: Callable[[Any], Any]
    seed: int
    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION
    given: Mapping[str, Any] = field(default_factory=dict)  # what the criterion sees

    def dense(self) -> float:
        """The metric of the given model.

        Raises:
            InputsError: the metric fails, or gives no number.
            CriterionError: it is not finite.
        """
        try:
            value = self._measured(self.net)
        except FxPruneError:
            raise
        except Exception as e:
            raise InputsError(f"metric(model) failed, or gave no number: {type(e).__name__}: {e}") from e
        if not math.isfinite(value):
            what = f"the {name_of(self.metric)} of the dense {type(self.net).__name__}"
            raise CriterionError(f"{what} is {value}; check the weights and data")
        return value

    def all(self, run: Trials, space: Plans, first: Mapping[str, Plan], trials: int, progress: bool) -> None:
        """Run what is left of the first `trials`."""
        run.begin([(name, space.shares(plan)) for name, plan in first.items()])
        with _bar(trials, progress) as show, run:
            while (claimed := run.claim(trials)) is not None:
                run.tell(claimed, *self._tried(run, claimed, space, first))
                show(claimed.number + 1)

    def _tried(
        self, run: Trials, claimed: Claimed, space: Plans, first: Mapping[str, Plan]
    ) -> tuple[Plan | None, float | None, str]:
        """A candidate's plan, and its metric or an error: a bad one must not end the search."""
        plan, value, error = None, None, ""
        try:
            plan = first.get(claimed.seed) or space.plan(claimed.shares)
            if (known := run.measured(plan)) is not None:
                return plan, known, ""
            base = compensated(space.graph, self.net, plan, self.criterion, **self.given)
            made = finished(self.net, space.graph, plan, verify=True, strict=False, seed=self.seed, base=base)
            value = self._measured(made)
            if not math.isfinite(value):
                value, error = None, f"the {name_of(self.metric)} is {value}"
        except Exception as e:  # noqa: BLE001 - whatever it is, it is the row's answer
            value, error = None, " ".join(f"{type(e).__name__}: {e}".split())
        return plan, value, error

    def _measured(self, net: nn.Module) -> float:
        whole = self.back(net)
        with torch.no_grad(), evaluating(net), torch.random.fork_rng():
            seed_torch(net, self.seed)
            return float(self.metric(whole))


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[int], object]]:
    """A function that shows how many candidates there are."""
    if not progress:
        yield lambda done: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("searching", total=total)
        yield lambda done: bar.update(task, completed=done)
