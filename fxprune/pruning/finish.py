"""The dense model of a plan, with its report."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.turns import in_turn
from fxprune.planning.legal import misfits
from fxprune.planning.plan import Plan
from fxprune.pruning.attempt import Clock, Realized
from fxprune.pruning.optimizers import warn_holders
from fxprune.pruning.realize import realize
from fxprune.pruning.timing import timed
from fxprune.reporting.anatomy import anatomy
from fxprune.reporting.report import Report, attach, causes, is_pruned, reductions, report
from fxprune.rewriting.rewrite import transplant
from fxprune.scoring.score import Scores


def finished(
    net: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    verify: bool,
    strict: bool,
    seed: int | None = None,
    inplace: bool = False,
    base: nn.Module | None = None,
) -> nn.Module:
    """The dense model of a plan that is settled, with its report.

    Args:
        base: what is cut instead of `net`: a copy whose weights make up for what goes.
    """

    def planned(other: ChannelGraph) -> Plan:
        if other is not graph:
            raise BudgetError("the plan is settled and cannot be made anew")
        return plan

    with in_turn:
        clock = Clock()
        made = realize(lambda *_: net if base is None else base, graph, planned, clock, verify, strict)
        return reported(net, made, clock, inplace, seed)


def reported(
    net: nn.Module,
    made: Realized,
    clock: Clock,
    inplace: bool,
    seed: int | None = None,
    scored: Sequence[Scores] = (),
    legal_for: str | None = None,
) -> nn.Module:
    """The dense model, with its report; `scored` are the scores of every plan that was tried, the last one's last."""
    timing = made.timing
    if timing is None and made.checks:
        with clock("confirm"):
            timing = timed(net, made.done.model, made.graph, made.plan)
    replaced = list(net.parameters()) if inplace else []
    small = transplant(net, made.done.model) if inplace else made.done.model
    warn_holders(replaced)
    told = Report(
        made.plan,
        made.done.changes,
        made.checks,
        made.done.forward,
        made.reason,
        causes(made.graph),
        dict(clock.seconds),
        seed=seed,
        timing=timing,
        unread=made.graph.unread,
        unseen=made.graph.unseen,
        outputs=str(made.graph.traced.returned),
        reduced=(*reductions(made.graph, made.plan), *made.follow),
        stale=made.stale,
        scoring=tuple(dict.fromkeys(note for scores in scored for note in scores.notes)),
        anatomy=anatomy(made.graph, made.plan, scored[-1] if scored else None),
        misfits=misfits(made.graph, made.plan, legal_for),
    )
    attach(small, told.after(report(net)) if is_pruned(net) else told)
    return small
