"""Plan and rewrite, and plan anew where the module's Python does not follow, until an attempt is proven."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from torch import nn

from fxprune.errors import BudgetError, RewriteError, VerifyError
from fxprune.graph.channels import FAILS, ChannelGraph
from fxprune.graph.equations import Equation
from fxprune.planning.norms import norm_changes
from fxprune.planning.plan import Plan
from fxprune.pruning.attempt import Clock, Realized, attempt, changed_literals, dense
from fxprune.rewriting.rewrite import UnsolvedError, rewrite
from fxprune.verification import NothingComparedError, check_dense

Base: TypeAlias = Callable[[Plan, ChannelGraph], nn.Module]
TRIALS = 200  # rewrites at most while the groups at fault are looked for
REPLANS = 64  # times that a plan is made anew because the module's Python could not follow it


def realize(
    base: Base,
    graph: ChannelGraph,
    planned: Callable[[ChannelGraph], Plan],
    clock: Clock,
    verify: bool,
    strict: bool,
    exact: bool = False,
) -> Realized:
    """Plan and rewrite until the module's own Python follows; else let the graph be the forward (not with `strict`).

    `base(plan, graph)` is the model to cut: the given one, or a copy whose weights make up for what goes.  With
    `exact`, widths stay where numbers made from them could not keep their value.
    """
    try:
        plan = first = planned(graph)
    except BudgetError as e:
        if strict or graph.traced.noted or (made := _beyond(base, graph, planned, clock, verify, e)) is None:
            raise
        return made
    original, trouble, literals = graph, "", list(graph.literals)
    short: BudgetError | None = None
    guilty: list[str] = []
    whole_heads = True
    for _ in range(REPLANS):
        net = base(plan, graph)
        try:
            return attempt(net, graph, plan, clock, verify, "module", "", exact)
        except UnsolvedError as e:
            trouble = trouble or str(e)
            graph = graph.holding(e.equation)
        except NothingComparedError:
            raise
        except VerifyError as e:
            trouble = trouble or str(e)
            if not verify:
                if not (held := changed_literals(graph, plan, literals)):
                    break
                graph, literals = graph.holding(*held), []
            elif stuck := _stuck(net, graph, plan):
                graph = replace(graph, fixed=graph.fixed | stuck)
            elif whole_heads and (coarser := _coarser(graph, planned)) is not None:
                graph, plan = coarser
                continue
            else:
                whole_heads = False
                with clock("verify"):
                    at_fault = faulty(net, graph, plan, exact)
                held = [eq for eq in literals if _touches(graph, eq, at_fault)]
                literals = [eq for eq in literals if not any(eq is h for h in held)]
                guilty += at_fault
                graph = graph.holding(*held) if held else graph.keeping(at_fault, FAILS)
        try:
            plan = planned(graph)
        except BudgetError as e:
            short = e
            break
    reachable = None if short is None else short.reachable
    if graph.traced.noted:
        raise RewriteError(
            f"{trouble}; the graph holds values that were read from the example inputs, so it cannot help"
        ) from short
    if strict:
        raise RewriteError(
            f"{trouble}; without strict=True the rewritten graph becomes the model's forward{_offer(reachable)}"
        ) from short
    try:
        made = attempt(base(first, original), original, first, clock, verify, "graph", trouble)
    except VerifyError as e:
        raise _unproved(e, list(dict.fromkeys(guilty)), short) from e
    _tell(made, reachable)
    return made


def _coarser(graph: ChannelGraph, planned: Callable[[ChannelGraph], Plan]) -> tuple[ChannelGraph, Plan] | None:
    """The graph whose unit is whole heads, and its plan; None where it is that already, or the budget out of reach."""
    if not graph.streamed:
        return None
    with suppress(BudgetError):
        coarser = graph.coarser()
        return coarser, planned(coarser)
    return None


def _unproved(failed: VerifyError, names: list[str], short: BudgetError | None) -> VerifyError:
    """What to do where neither the module nor its graph computes what the masked model does."""
    if not names:
        return failed
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    advice = "pass ignore= with these tensors"
    if short is not None and short.reachable is not None:
        advice = f"without these {short.reachable:.1%} can go: ask for ratio={short.reachable:.2f} or less"
    return VerifyError(f"{failed}; at fault: {', '.join(names[:3])}{more}; {advice}")


def faulty(net: nn.Module, graph: ChannelGraph, plan: Plan, exact: bool = False) -> list[str]:
    """The groups of a plan for which, each by itself, the module does not compute what it should: by halving the plan.

    Where each is right by itself and only together they are not, all of the smallest part that fails.
    """
    left = [TRIALS]

    def fails(names: tuple[str, ...]) -> bool:
        left[0] -= 1
        part = replace(plan, removed={n: plan.removed[n] for n in names})
        part = replace(part, norms=norm_changes(graph, part.kept(graph)))
        try:
            return not all(c.ok for c in dense(net, graph, part, "module", True, exact).checks)
        except (VerifyError, UnsolvedError):
            return True

    def search(names: tuple[str, ...]) -> list[str]:
        """Those at fault among names that fail together."""
        if len(names) <= 1 or left[0] <= 0:
            return list(names)
        half = len(names) // 2
        found = [n for part in (names[:half], names[half:]) if fails(part) for n in search(part)]
        return found or list(names)

    return search(tuple(n for n, gone in plan.removed.items() if len(gone)))


def _touches(graph: ChannelGraph, eq: Equation, names: list[str]) -> bool:
    """Whether an equation is about channels of some groups."""
    components = [graph.group(n).components for n in names]
    return eq.axis is not None and any(np.isin(graph.component[eq.axis], c).any() for c in components)


def _tell(made: Realized, reachable: float | None) -> None:
    """Warn that the graph has become the forward: such a model cannot be saved whole."""
    warnings.warn(
        f"the rewritten graph becomes the forward of this {made.graph.model_class}: {made.reason}. The model runs and "
        "trains, but neither fxprune.save nor torch.save can write it whole (its state_dict can be)"
        f"{_offer(reachable) or '; ignore= what is in the way keeps the own forward'}; strict=True refuses this",
        stacklevel=5,
    )


def _offer(reachable: float | None) -> str:
    """How far the module's own forward follows, where that is known."""
    return f"; its own forward follows up to about ratio={math.floor(reachable * 100) / 100:.2f}" if reachable else ""


def _stuck(net: nn.Module, graph: ChannelGraph, plan: Plan) -> frozenset[str]:
    """Blocks of a plan without which, each by itself, the module does not compute what it should."""

    def fails(name: str) -> bool:
        alone = replace(plan, blocks=(name,), removed={}, norms={})
        try:
            return not check_dense(net, rewrite(net, graph, alone).model, graph, alone).ok
        except (VerifyError, UnsolvedError):
            return True

    return frozenset(name for name in plan.blocks if fails(name))


def _beyond(
    base: Base,
    graph: ChannelGraph,
    planned: Callable[[ChannelGraph], Plan],
    clock: Clock,
    verify: bool,
    missed: BudgetError,
) -> Realized | None:
    """The graph as the forward, where the budget is out of reach only for the sake of the module's own Python."""
    graph = graph.uncoupled()
    how_far = "the budget" if missed.reachable is None else f"more than {missed.reachable:.1%}"
    trouble = f"the forward of {graph.model_class} computes with sizes that couple axes and cannot follow {how_far}"
    try:
        plan = planned(graph)
        made = attempt(base(plan, graph), graph, plan, clock, verify, "graph", trouble)
    except (BudgetError, RewriteError, VerifyError):
        return None
    _tell(made, missed.reachable)
    return made
