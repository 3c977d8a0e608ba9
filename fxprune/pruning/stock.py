"""One cut to a shape that the class's own constructor can make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fxprune.adapter import Adapter, Constructor
from fxprune.errors import BudgetError, InputsError, PlanError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.blocks import SHARE, scores_on
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import require_cost
from fxprune.planning.limits import Limits
from fxprune.planning.plan import Plan
from fxprune.planning.ranking import scope_of
from fxprune.planning.selection import checked
from fxprune.planning.selectors import ignored_blocks
from fxprune.pruning.attempt import Clock
from fxprune.pruning.order import Order
from fxprune.pruning.realize import Base
from fxprune.pruning.timing import timed
from fxprune.reporting.anatomy import anatomy
from fxprune.reporting.report import Report, causes, reductions
from fxprune.scoring.score import Scores
from fxprune.stock.entries import Path, numbers, told
from fxprune.stock.instance import Asked, Instance, instance
from fxprune.stock.layers import Depth, Removal, depth_of, layers_of, shallower
from fxprune.stock.narrowing import NEAR, narrowing, oracle_of
from fxprune.stock.oracle import Oracle, Refusal

Trace = Callable[[str], ChannelGraph]
Score = Callable[[ChannelGraph], Scores]


def constructor_of(net: nn.Module, adapter: Adapter, shape: Any) -> Constructor:
    """What makes such a model: the library's record, or what the caller gives as `shape`.

    Raises:
        InputsError: nothing is known.
    """
    if shape == "stock":
        made = adapter.constructor(net)
        if made is None:
            raise InputsError(
                f"shape='stock': nothing records what made this {type(net).__name__}; pass its constructor with what "
                f"it was given: shape=functools.partial({type(net).__name__}, ...)"
            )
        return made
    call = shape if isinstance(shape, functools.partial) else functools.partial(shape)
    name = getattr(call.func, "__name__", type(net).__name__)
    return Constructor(name, _arguments(call), lambda config: call.func(**config))


def _arguments(call: functools.partial[Any]) -> dict[str, Any]:
    """All arguments of a call by name, those that were left out at their defaults.

    Raises:
        InputsError: it cannot be called so.
    """
    try:
        signature = inspect.signature(call.func)
        given = signature.bind(*call.args, **call.keywords)
    except (TypeError, ValueError) as e:
        raise InputsError(f"shape={call!r:.100} is no call of {call.func!r:.60}: {e}") from e
    given.apply_defaults()
    loose = {n for n, p in signature.parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    more: dict[str, Any] = next((given.arguments[n] for n in loose if isinstance(given.arguments[n], dict)), {})
    return {n: v for n, v in {**given.arguments, **more}.items() if n not in loose}


def stock_once(
    net: nn.Module,
    constructor: Constructor,
    order: Order,
    limits: Limits,
    trace: Trace,
    scores: Score,
    base: Base,
    clock: Clock,
) -> tuple[nn.Module, Report]:
    """The class's own instance that is nearest to a budget, and what happened.

    Whole heads are tried first; where these cannot come near, the dimensions of every head; then whole layers.

    Args:
        base: gives the model to cut: the given one, or a copy whose weights make up for what goes.

    Raises:
        BudgetError: nothing near the budget can be made; tells what can.
    """
    _require_able(order, limits)
    cuts: list[_Cut] = []
    missed: list[BudgetError] = []
    for attention in ("head_dim",) if order.attention == "head_dim" else ("heads", "head_dim"):
        graph = trace(attention)
        cuts.append(_Cut(net, oracle_of(net, constructor, graph), scores(graph), order, replace(limits, nearest=False)))
        with clock("plan"):
            made = cuts[-1].made()
        if isinstance(made, Instance):
            return _finished(made, cuts[-1], constructor, order, base, clock)
        missed.append(made)
    if order.granularity == "channel":
        cuts.append(replace(cuts[0], order=replace(order, granularity="block")))
    with clock("plan"):
        tried = [replace(cut, limits=limits).made() for cut in (cuts if limits.nearest else cuts[len(missed) :])]
    done = [
        (made, cut)
        for made, cut in zip(tried, cuts[len(cuts) - len(tried) :], strict=True)
        if isinstance(made, Instance)
    ]
    if not done:
        first = max(missed, key=lambda e: e.reachable or 0.0)
        layers = [e for e in tried[-1:] if isinstance(e, BudgetError) and order.granularity == "channel"]
        most = max(e.reachable or 0.0 for e in (first, *layers))
        raise BudgetError(". ".join(map(str, (first, *layers))), reachable=most)
    best, cut = min(done, key=lambda d: abs(d[0].plan.achieved - d[0].plan.ratio))
    return _finished(best, cut, constructor, order, base, clock)


@dataclass(frozen=True)
class _Cut:
    """One way to look at a model: its graph, with scores."""

    net: nn.Module
    oracle: Oracle
    scores: Scores
    order: Order
    limits: Limits

    def made(self) -> Instance | BudgetError:
        """The instance nearest to the budget, of what the granularity lets go."""
        if self.order.granularity == "channel":
            return self._narrowed(self.oracle)
        depths = self._depths()
        below = [d for d in depths if d.share <= self.asked * (SHARE if self.order.granularity == "both" else 1) + 1e-9]
        tried = [below[-1]] if self.order.granularity == "both" else self._nearest(depths)
        made: Instance | BudgetError | Refusal = Refusal("it has no layers that can go")
        for depth in tried:
            oracle = shallower(self.oracle, depth) if depth.blocks else self.oracle
            if self.order.granularity == "both":
                made = self._narrowed(oracle)
            else:
                made = instance(self.net, oracle, {}, self._given(oracle))
            if isinstance(made, Instance):
                return made
        if isinstance(made, BudgetError):
            return made
        shares = ", ".join(f"{d.share:.1%}" for d in depths)
        return BudgetError(
            f"{self.asked:.1%} of {self.order.budget.of} cannot be removed from this {type(self.net).__name__} by "
            f"whole layers that its constructor counts: {made} (layers make {shares}). Pass nearest=True, or "
            "granularity='both'",
            reachable=max(d.share for d in depths),
        )

    @functools.cached_property
    def asked(self) -> float:
        """The share that is to go."""
        costs = CostModel(self.oracle.graph)
        require_cost(costs, self.order.budget.of)
        share = self.order.budget.share(costs)
        assert share is not None
        return share

    def _nearest(self, depths: list[Depth]) -> list[Depth]:
        near = sorted(depths, key=lambda d: abs(d.share - self.asked))
        return [d for d in near if self.limits.nearest or abs(d.share - self.asked) <= NEAR]

    def _depths(self) -> list[Depth]:
        held = ignored_blocks(self.oracle.graph, self.limits.ignore)
        worth, of = self.scores.blocks, self.order.budget.of
        return Removal(self.oracle, layers_of(self.oracle), worth, of, held).options(self.asked)

    def _given(self, oracle: Oracle) -> Asked:
        values = checked(oracle.graph, scores_on(oracle.graph, self.scores.values))
        return Asked(self.asked, self.order.budget.of, self.scores.criterion, values, self.limits.exact_norms)

    def _narrowed(self, oracle: Oracle) -> Instance | BudgetError:
        knapsack = scope_of(self.limits.scope, self.scores, self.order.budget.of) == "knapsack"
        found = narrowing(self.net, oracle, self._given(oracle), self.limits, knapsack)
        return found.nearest()


@dataclass(frozen=True)
class Replayed:
    """What became of a plan: the model, its report, and the tensors that have moved up (their name before -> now)."""

    model: nn.Module
    report: Report
    moved: Mapping[str, str]


def replayed(net: nn.Module, constructor: Constructor, graph: ChannelGraph, plan: Plan) -> Replayed:
    """The class's own instance of a plan that was made for a stock shape.

    Raises:
        PlanError: it cannot be made of this model.
    """
    oracle = oracle_of(net, constructor, graph)
    if plan.blocks:
        oracle = shallower(oracle, depth_of(oracle, plan))
    paths = {told(path): path for path, _ in numbers(constructor.config)}
    changes: dict[Path, Any] = {}
    for entry, (_, new) in plan.config.items():
        if (path := paths.get(entry)) is None:
            path = (entry,)
            oracle = oracle.spelling(entry, int(new))
        if path not in oracle.before:
            changes[path] = new
    place = {g.name: i for i, g in enumerate(oracle.graph.groups)}
    gone = {place[name]: list(channels) for name, channels in plan.removed.items() if channels}
    asked = Asked(plan.ratio, plan.of, plan.criterion, {})
    made = instance(net, oracle, changes, asked, gone)
    if isinstance(made, Refusal):
        raise PlanError(f"the plan's stock shape cannot be made of this {type(net).__name__}: {made}")
    report = Report(
        plan, (), made.checks, held=causes(graph), outputs=str(graph.traced.returned), maker=constructor.name
    )
    return Replayed(made.model, report, {old: new for new, old in oracle.names.items()})


def _require_able(order: Order, limits: Limits) -> None:
    if limits.ratios is not None:
        raise BudgetError(
            "ratios= by name has no place with a stock shape: its constructor ties the widths of many layers; leave it "
            "out, or pass shape='free'"
        )
    if limits.round_to == "auto":
        raise BudgetError("round_to='auto' is for shape='free'; with a stock shape pass a number, such as round_to=8")


def _finished(
    made: Instance, cut: _Cut, constructor: Constructor, order: Order, base: Base, clock: Clock
) -> tuple[nn.Module, Report]:
    """The instance, of weights that make up for what went, and what happened."""
    corrected = base(made.plan, cut.oracle.graph)
    if corrected is not cut.net:
        again = replayed(corrected, constructor, cut.oracle.graph, made.plan)
        made = replace(made, model=again.model, checks=again.report.checks)
    return made.model, _report(made, cut, constructor, order, clock)


def _report(made: Instance, cut: _Cut, constructor: Constructor, order: Order, clock: Clock) -> Report:
    graph = cut.oracle.graph
    with clock("confirm"):
        timing = timed(cut.net, made.model, graph, made.plan)
    return Report(
        made.plan,
        (),
        made.checks,
        held=causes(graph),
        seconds=dict(clock.seconds),
        seed=order.seed,
        unread=graph.unread,
        unseen=graph.unseen,
        timing=timing,
        outputs=str(graph.traced.returned),
        reduced=reductions(graph, made.plan),
        scoring=tuple(cut.scores.notes),
        maker=constructor.name,
        steps=made.steps,
        anatomy=anatomy(graph, made.plan, cut.scores),
    )
