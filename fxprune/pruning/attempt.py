"""One attempt: a plan rewritten, its scales and numbers brought along, and proven."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from fxprune.adapter import find_adapter
from fxprune.errors import RewriteError, VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.equations import Equation
from fxprune.graph.packing import in_parts
from fxprune.graph.provenance import Attr
from fxprune.masking.masked_run import Numbers
from fxprune.planning.plan import Plan
from fxprune.reporting.speed import Timing
from fxprune.rewriting.attributes import Change, set_attribute, set_entry
from fxprune.rewriting.rewrite import Rewritten, rewrite
from fxprune.rewriting.scales import Scales, scales_of
from fxprune.rewriting.unread import Stale, unread
from fxprune.verification import Check, check_dense, check_training, same_batches


@dataclass(frozen=True)
class Dense:
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


def attempt(
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
    if forward == "graph" and in_parts(graph.traced.example):
        raise RewriteError(f"{trouble}; parts have no forward that the rewritten graph could be: use ignore= there")
    if not verify and forward == "module" and any(eq.node for eq in changed_literals(graph, plan, graph.literals)):
        raise VerifyError(f"{type(net).__name__} holds plain numbers for sizes that change")
    with clock("rewrite"):
        made, brought = _made(net, graph, plan, forward, verify, exact)
    graph, plan = made.graph, made.plan
    for check in made.checks:
        if not check.ok:
            raise VerifyError(f"{check} for {type(net).__name__}; the given model is unchanged")
    if verify and forward == "graph" and not same_batches(net, made.done.model, graph):
        raise RewriteError(
            f"{trouble}; the rewritten graph could be the forward of {type(net).__name__}, but only for the batch size "
            "of the example inputs: trace with the batch size you need and verify=False, or keep that part with ignore="
        )
    told, stale = _described(net, made.done.model, list(brought.stale))
    done = replace(made.done, changes=(*made.done.changes, *brought.changes, *told))
    return Realized(graph, plan, done, made.checks, tuple(stale), trouble, made.follow)


def changed_literals(graph: ChannelGraph, plan: Plan, literals: Iterable[Equation]) -> list[Equation]:
    """The integers of unknown origin that stand for sizes which a plan changes."""
    keep = plan.kept(graph)
    return [eq for eq in literals if graph.kept(eq.axis, keep, eq.old) != eq.old]


def proofs(
    net: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, numbers: Sequence[Numbers] | None = None
) -> tuple[Check, ...]:
    """Masked = dense, in train mode too where the model computes something else there."""
    return (check_dense(net, small, graph, plan, numbers), *check_training(net, small, graph, plan, numbers))


@dataclass(frozen=True)
class Brought:
    """The integers that no trace has read, as they were brought along where they can only mean a width."""

    follow: Mapping[Attr, int]
    changes: tuple[Change, ...]
    stale: tuple[Stale, ...]

    def left(self) -> Brought:
        """None of them, since the proof does not hold with them."""
        named = ((a, str(a).removeprefix(f"{a.path}."), new) for a, new in self.follow.items())
        return Brought({}, (), (*(Stale(a.path, name, a.old, (new,)) for a, name, new in named), *self.stale))


def _made(
    net: nn.Module, graph: ChannelGraph, plan: Plan, forward: str, verify: bool, exact: bool
) -> tuple[Dense, Brought]:
    """The dense model with all its integers brought along; without those that no trace has read where a proof fails.

    One proof is for both: a second would read a large model once more.
    """
    tried: list[Brought] = []

    def bring(small: nn.Module) -> None:
        follow, stale = unread(small, graph, plan.kept(graph), find_adapter(net).widths(net))
        changes = tuple(c for attr, new in follow.items() for c in set_attribute(small, attr, new))
        tried.append(Brought(follow, changes, tuple(stale)))

    try:
        made = dense(net, graph, plan, forward, verify, exact, bring)
        if not tried[0].follow or all(c.ok for c in made.checks):
            return made, tried[0]
    except VerifyError:
        if not (tried and tried[0].follow):
            raise
    return dense(net, graph, plan, forward, verify, exact), tried[0].left()


def _described(net: nn.Module, small: nn.Module, stale: list[Stale]) -> tuple[list[Change], list[Stale]]:
    """What its family says that a model tells of itself, brought along; and what is stale all the same."""
    told = find_adapter(net).described(net, small)
    changes = [c for name, new in told.items() if (c := set_entry(small, name, new)) is not None]
    return changes, [s for s in stale if s.path or s.dotted not in told]


def dense(
    net: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    forward: str,
    verify: bool,
    exact: bool = False,
    bring: Callable[[nn.Module], None] = lambda small: None,
) -> Dense:
    """The dense model and its proofs; `bring` may change its integers before these.

    Scales that its Python computes from a width are those of the given model, as far as weights can undo a change;
    where none can, they follow the width (not if `exact`).
    """
    done = rewrite(net, graph, plan, forward=forward)
    bring(done.model)
    if forward == "module" and graph.follows:
        return _following(net, Dense(done, (), graph, plan), verify)
    checks = proofs(net, done.model, graph, plan) if verify else ()
    computed = graph.traced.recorder.numbers or graph.traced.recorder.lost
    if forward != "module" or (all(c.ok for c in checks) if verify else not computed):
        return Dense(done, checks, graph, plan)
    left = graph.without(plan.blocks)
    found = scales_of(left, left, done.model, plan.kept(graph))
    if found is None or (found.lost and exact):
        if not verify:
            raise VerifyError(f"a scale that {type(net).__name__} computes from a width cannot be kept")
        return Dense(done, checks, graph, plan)
    if found.lost:
        graph = graph.following()
        plan = replace(plan, traced=(plan.traced[0], *graph.revisions))
        return _following(net, Dense(done, checks, graph, plan), verify, found)
    for fold in found.folds:
        fold.apply(done.model)
    if found.folds and verify:
        checks = proofs(net, done.model, graph, plan)
    return Dense(done, checks, graph, plan)


def _following(net: nn.Module, made: Dense, verify: bool, found: Scales | None = None) -> Dense:
    """With numbers that follow the widths, where no weight can undo what became of them."""
    small, keep = made.done.model, made.plan.kept(made.graph)
    left = made.graph.without(made.plan.blocks)
    found = found or scales_of(left, left, small, keep)
    if found is None:
        raise VerifyError(f"a scale that {type(net).__name__} computes from a width cannot be kept")
    for fold in found.folds:
        fold.apply(small)
    others = [scales_of(left, view, small, keep) for view in left.modes[1:]] if verify else []
    numbers = [{} if s is None else s.followed for s in (found, *others)]
    checks = proofs(net, small, made.graph, made.plan, numbers) if verify else ()
    return replace(made, checks=checks, numbers=numbers, follow=tuple(dict.fromkeys(map(str, found.lost))))
