"""One cut to a shape that the class's own constructor can make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fxprune.adapter import Adapter, Constructor
from fxprune.errors import BudgetError, InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import require_cost
from fxprune.planning.limits import Limits
from fxprune.planning.ranking import scope_of
from fxprune.planning.selection import checked
from fxprune.pruning.order import Order
from fxprune.pruning.realize import Clock
from fxprune.reporting.report import Report, causes, reductions
from fxprune.scoring.score import Scores
from fxprune.stock.instance import Asked, Instance
from fxprune.stock.narrowing import narrowing

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
                f"shape='stock': nothing records what made this {type(net).__name__}; pass its constructor with what it "
                f"was given: shape=functools.partial({type(net).__name__}, ...)"
            )
        return made
    call = shape if isinstance(shape, functools.partial) else functools.partial(shape)
    config = {"args": list(call.args), "kwargs": _defaults(call)}
    name = getattr(call.func, "__name__", type(net).__name__)
    return Constructor(name, config, lambda c: call.func(*c["args"], **c["kwargs"]))


def _defaults(call: functools.partial[Any]) -> dict[str, Any]:
    """Keywords of a call, those that were left out at their defaults."""
    takes = inspect.signature(call.func).parameters.values()
    given = inspect.signature(call.func).bind_partial(*call.args).arguments
    plain = (int, float, list, tuple, dict)
    left = {p.name: p.default for p in takes if p.name not in given and isinstance(p.default, plain)}
    return {**left, **call.keywords}


def stock_once(
    net: nn.Module, constructor: Constructor, order: Order, limits: Limits, trace: Trace, scores: Score, clock: Clock
) -> tuple[nn.Module, Report]:
    """The class's own instance that is nearest to a budget, and what happened.

    Whole heads are tried first; where these cannot come near, the dimensions of every head.

    Raises:
        BudgetError: nothing near the budget can be made; tells what can.
    """
    _require_able(order, limits)
    missed: list[BudgetError] = []
    for attention in ("head_dim",) if order.attention == "head_dim" else ("heads", "head_dim"):
        graph = trace(attention)
        found = scores(graph)
        costs = CostModel(graph)
        require_cost(costs, order.budget.of)
        asked = order.budget.share(costs)
        assert asked is not None
        values, criterion = checked(graph, found.values), found.criterion
        knapsack = scope_of(limits.scope, found, order.budget.of) == "knapsack"
        with clock("plan"):
            given = Asked(asked, order.budget.of, criterion, values, limits.exact_norms)
            made = narrowing(net, constructor, graph, given, limits, knapsack).nearest(order.verify)
        if isinstance(made, Instance):
            return made.model, _report(made, graph, constructor, order, found, clock)
        missed.append(made)
    raise max(missed, key=lambda e: e.reachable or 0.0)


def _require_able(order: Order, limits: Limits) -> None:
    if limits.ratios is not None:
        raise BudgetError(
            "ratios= by name has no place with a stock shape: its constructor ties the widths of many layers; leave it "
            "out, or pass shape='free'"
        )
    if limits.round_to == "auto":
        raise BudgetError("round_to='auto' is for shape='free'; with a stock shape pass a number, such as round_to=8")


def _report(
    made: Instance, graph: ChannelGraph, constructor: Constructor, order: Order, found: Scores, clock: Clock
) -> Report:
    return Report(
        made.plan,
        (),
        made.checks,
        held=causes(graph),
        seconds=dict(clock.seconds),
        seed=order.seed,
        unread=graph.unread,
        unseen=graph.unseen,
        outputs=str(graph.traced.returned),
        reduced=reductions(graph, made.plan),
        scoring=tuple(found.notes),
        maker=constructor.name,
    )
