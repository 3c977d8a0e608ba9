"""From a plan to a dense model with a report: rewrite, verify, plan anew where the module's Python does not follow."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from torch import nn

from fxprune.adapter import find_adapter
from fxprune.errors import BudgetError, RewriteError, VerifyError
from fxprune.graph.channels import FAILS, ChannelGraph
from fxprune.graph.equations import Equation
from fxprune.graph.turns import in_turn
from fxprune.masking.masked_run import Numbers
from fxprune.planning.legal import misfits
from fxprune.planning.norms import norm_changes
from fxprune.planning.plan import Plan
from fxprune.pruning.optimizers import warn_holders
from fxprune.pruning.timing import timed
from fxprune.reporting.anatomy import anatomy
from fxprune.reporting.report import Report, attach, causes, is_pruned, reductions, report
from fxprune.reporting.speed import Timing
from fxprune.rewriting.attributes import Change, set_attribute, set_entry
from fxprune.rewriting.rewrite import Rewritten, UnsolvedError, rewrite, transplant
from fxprune.rewriting.scales import Scales, scales_of
from fxprune.rewriting.unread import Stale, unread
from fxprune.scoring.score import Scores
from fxprune.verification import Check, NothingComparedError, check_dense, check_training, same_batches

Base: TypeAlias = Callable[[Plan, ChannelGraph], nn.Module]
TRIALS = 200  # rewrites at most while the groups at fault are looked for
REPLANS = 64  # times that a plan is made anew because the module's Python could not follow it


@dataclass(frozen=True)
class _Dense:
    """A rewritten model with its proofs, the graph and plan that say so, and the numbers that follow a width."""

    done: Rewritten
    checks: tuple[Check, ...]
    graph: ChannelGraph
    plan: Plan
    numbers: Sequence[Numbers] | None = None
    follow: tuple[str, ...] = ()


@dataclass
class Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Realized:
    """A rewritten model with the graph and plan it came from.

    `reason` says why its forward is the graph, if it is; `follow` which numbers of its Python follow a width; `timing`
    how fast it is, where that is known.
    """

    graph: ChannelGraph
    plan: Plan
    done: Rewritten
    checks: tuple[Check, ...]
    stale: tuple[Stale, ...] = ()
    reason: str = ""
    follow: tuple[str, ...] = ()
    timing: Timing | None = None


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
            return _attempt(net, graph, plan, clock, verify, "module", "", exact)
        except UnsolvedError as e:
            trouble = trouble or str(e)
            graph = graph.holding(e.equation)
        except NothingComparedError:
            raise
        except VerifyError as e:
            trouble = trouble or str(e)
            if not verify:
                graph, literals = graph.holding(*_cut(graph, plan, literals)), []
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
        made = _attempt(base(first, original), original, first, clock, verify, "graph", trouble)
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
            return not all(c.ok for c in _dense(net, graph, part, "module", True, exact).checks)
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


def _cut(graph: ChannelGraph, plan: Plan, literals: Iterable[Equation]) -> list[Equation]:
    """The integers of unknown origin that stand for sizes which a plan changes."""
    keep = plan.kept(graph)
    return [eq for eq in literals if graph.kept(eq.axis, keep, eq.old) != eq.old]


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
        made = _attempt(base(plan, graph), graph, plan, clock, verify, "graph", trouble)
    except (BudgetError, RewriteError, VerifyError):
        return None
    _tell(made, missed.reachable)
    return made


def _attempt(
    net: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    clock: Clock,
    verify: bool,
    forward: str,
    trouble: str,
    exact: bool = False,
) -> Realized:
    if forward == "graph" and not graph.traced.returned.whole:
        raise RewriteError(
            f"{trouble}; the rewritten graph cannot be the forward, since it gives only the outputs that count, as "
            "plain tensors: keep that part with ignore=, or return all outputs in tuples, lists and dicts"
        )
    if not verify and forward == "module" and any(eq.node for eq in _cut(graph, plan, graph.literals)):
        raise VerifyError(f"{type(net).__name__} holds plain numbers for sizes that change")
    with clock("rewrite"):
        made = _dense(net, graph, plan, forward, verify, exact)
    graph, plan = made.graph, made.plan
    for check in made.checks:
        if not check.ok:
            raise VerifyError(f"{check} for {type(net).__name__}; the given model is unchanged")
    if verify and forward == "graph" and not same_batches(net, made.done.model, graph):
        raise RewriteError(
            f"{trouble}; the rewritten graph could be the forward of {type(net).__name__}, but only for the batch size "
            "of the example inputs: trace with the batch size you need and verify=False, or keep that part with ignore="
        )
    return Realized(graph, plan, *_brought_along(net, made), trouble, made.follow)


def proofs(
    net: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, numbers: Sequence[Numbers] | None = None
) -> tuple[Check, ...]:
    """Masked = dense, in train mode too where the model computes something else there."""
    return (check_dense(net, small, graph, plan, numbers), *check_training(net, small, graph, plan, numbers))


def _brought_along(net: nn.Module, made: _Dense) -> tuple[Rewritten, tuple[Check, ...], tuple[Stale, ...]]:
    """The integers that no trace has read, brought along where they can only mean a width and the proof still holds."""
    done, graph, plan = made.done, made.graph, made.plan
    follow, stale = unread(done.model, graph, plan.kept(graph), find_adapter(net).widths(net))
    changes = [c for attr, new in follow.items() for c in set_attribute(done.model, attr, new)]
    told, stale = _described(net, done.model, stale)
    if changes and made.checks:
        try:
            holds = all(c.ok for c in proofs(net, done.model, graph, plan, made.numbers))
        except VerifyError:
            holds = False
        if not holds:
            for attr in follow:
                set_attribute(done.model, attr, attr.old)
            left = (Stale(a.path, str(a).removeprefix(f"{a.path}."), a.old, (new,)) for a, new in follow.items())
            changes, stale = [], [*left, *stale]
    return replace(done, changes=(*done.changes, *changes, *told)), made.checks, tuple(stale)


def _described(net: nn.Module, small: nn.Module, stale: list[Stale]) -> tuple[list[Change], list[Stale]]:
    """What its family says that a model tells of itself, brought along; and what is stale all the same."""
    told = find_adapter(net).described(net, small)
    changes = [c for name, new in told.items() if (c := set_entry(small, name, new)) is not None]
    return changes, [s for s in stale if s.path or s.dotted not in told]


def _dense(net: nn.Module, graph: ChannelGraph, plan: Plan, forward: str, verify: bool, exact: bool = False) -> _Dense:
    """The dense model and its proofs.

    Scales that its Python computes from a width are those of the given model, as far as weights can undo a change;
    where none can, they follow the width (not if `exact`).
    """
    done = rewrite(net, graph, plan, forward=forward)
    if forward == "module" and graph.follows:
        return _following(net, _Dense(done, (), graph, plan), verify)
    checks = proofs(net, done.model, graph, plan) if verify else ()
    computed = graph.traced.recorder.numbers or graph.traced.recorder.lost
    if forward != "module" or (all(c.ok for c in checks) if verify else not computed):
        return _Dense(done, checks, graph, plan)
    found = scales_of(graph, graph, done.model, plan.kept(graph))
    if found is None or (found.lost and exact):
        if not verify:
            raise VerifyError(f"a scale that {type(net).__name__} computes from a width cannot be kept")
        return _Dense(done, checks, graph, plan)
    if found.lost:
        graph = graph.following()
        plan = replace(plan, traced=(plan.traced[0], *graph.revisions))
        return _following(net, _Dense(done, checks, graph, plan), verify, found)
    for fold in found.folds:
        fold.apply(done.model)
    if found.folds and verify:
        checks = proofs(net, done.model, graph, plan)
    return _Dense(done, checks, graph, plan)


def _following(net: nn.Module, made: _Dense, verify: bool, found: Scales | None = None) -> _Dense:
    """With numbers that follow the widths, where no weight can undo what became of them."""
    small, keep = made.done.model, made.plan.kept(made.graph)
    found = found or scales_of(made.graph, made.graph, small, keep)
    if found is None:
        raise VerifyError(f"a scale that {type(net).__name__} computes from a width cannot be kept")
    for fold in found.folds:
        fold.apply(small)
    others = [scales_of(made.graph, view, small, keep) for view in made.graph.modes[1:]] if verify else []
    numbers = [{} if s is None else s.followed for s in (found, *others)]
    checks = proofs(net, small, made.graph, made.plan, numbers) if verify else ()
    return replace(made, checks=checks, numbers=numbers, follow=tuple(dict.fromkeys(map(str, found.lost))))


def finished(
    net: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    verify: bool,
    strict: bool,
    seed: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    """The dense model of a plan that is settled, with its report."""

    def planned(other: ChannelGraph) -> Plan:
        if other is not graph:
            raise BudgetError("the plan is settled and cannot be made anew")
        return plan

    with in_turn:
        clock = Clock()
        made = realize(lambda *_: net, graph, planned, clock, verify, strict)
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
