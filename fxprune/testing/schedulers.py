"""The laws of schedulers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fxprune import registry
from fxprune.errors import PluginError
from fxprune.testing.claims import Claims, subject
from fxprune.training.scheduler import Floats, Flow, Problem, Scheduler, begun

NEAR = 0.03  # of the asked ratio: one channel of the small network


def check_scheduler(
    scheduler: str | type[Scheduler] | Scheduler,
    *,
    ratio: float = 0.4,
    steps: int = 60,
    most: float | None = None,
) -> None:
    """Check a scheduler on a small network, with random scores, for budgets of parameters and of MACs.

    Args:
        scheduler: a class that can be called without arguments, an instance, or a registered name.
        ratio: share of the cost to remove.
        steps: of the run.
        most: the largest change of a mask's entry in one step, where the scheduler promises one; its flows may declare
            it by an attribute of that name.

    Raises:
        AssertionError: it breaks a law; names the scheduler, its package, and the law.

    >>> check_scheduler("iterative")
    """
    claims = Claims.of("schedulers", "scheduler", scheduler)
    with claims.during("it cannot be made"):
        made = registry.make("schedulers", scheduler) if isinstance(scheduler, str) else scheduler
        made = made() if isinstance(made, type) else made
    claims.hold(isinstance(made, Scheduler), f"a {type(made).__name__} is no fxprune.Scheduler: inherit from it")
    graph = subject("Images").graph
    for of in ("params", "macs"):
        problem = Problem(graph, ratio, steps, of)
        options = repr(made)
        masks = list(_run(claims, problem, _begun(claims, made, problem), most))
        claims.hold(repr(made) == options, "a run changed the scheduler's own options; keep state in the flow")
        again = list(_run(claims, problem, _begun(claims, made, problem), most))
        claims.hold(_same(masks, again), "two runs with the same scores gave different masks")
        _check_resumption(claims, made, problem, masks)
    _check_short(claims, made, Problem(graph, ratio, 1))


def _begun(claims: Claims, scheduler: Scheduler, problem: Problem) -> Flow:
    with claims.during("begin() fails"):
        flow = begun(scheduler, problem)
    claims.hold(bool((flow.mask == 1).all()), "its mask does not begin with ones")
    claims.hold(flow.due, "it does not ask for scores before the first step (due is False)")
    with contextlib.suppress(PluginError):
        claims.fail(f"it has a plan before the first step: {flow.plan!r}")
    return flow


def _run(claims: Claims, problem: Problem, flow: Flow, most: float | None) -> Iterator[Floats]:
    """The masks from here to the end, each checked."""
    while not flow.done:
        yield _step(claims, problem, flow, most)
        claims.hold(flow.taken <= problem.steps, f"it is not done after {problem.steps} steps (does step() count?)")
    _check_end(claims, problem, flow)


def _step(claims: Claims, problem: Problem, flow: Flow, most: float | None) -> Floats:
    """One step, with fresh scores where they are due, the same for the same step."""
    before, taken = flow.mask.copy(), flow.taken
    with claims.during(f"step {taken} fails"):
        if flow.due:
            flow.refresh(_values(problem, taken))
            claims.hold(not flow.due, "refresh() does not clear `due`")
        mask: Floats = np.array(flow.step(), np.float64)
    claims.hold(flow.taken == taken + 1, "step() must count in `taken`, one at a time")
    claims.hold(mask.shape == before.shape, f"a mask has shape {mask.shape}, not one number a channel, {before.shape}")
    claims.hold(bool(((mask >= 0) & (mask <= 1)).all()), f"a mask leaves [0, 1] at step {taken}, or is NaN")
    largest = getattr(flow, "most", None) if most is None else most
    if largest is not None:
        jump = float(np.abs(mask - before).max())
        claims.hold(jump <= largest + 1e-9, f"a mask jumps by {jump:.3g} at step {taken}; it promises {largest:.3g}")
    if flow.decay is not None:
        right = np.shape(flow.decay) == before.shape and bool((np.asarray(flow.decay) >= 0).all())
        claims.hold(right, f"decay at step {taken} must be a vector of numbers that are not negative, one a channel")
    return mask


def _check_end(claims: Claims, problem: Problem, flow: Flow) -> None:
    with claims.during("it has no plan at the end"):
        plan = flow.plan
    mask = flow.mask
    claims.hold(set(np.unique(mask)) <= {0.0, 1.0}, "its last mask is not binary")
    claims.hold(np.array_equal(mask, problem.mask(plan)), "its last mask is not that of its plan")
    gone = plan.achieved
    what = f"it ends with {gone:.1%} of {problem.of} gone, where {problem.ratio:.1%} were asked"
    claims.hold(abs(gone - problem.ratio) <= NEAR, what)


def _check_resumption(claims: Claims, scheduler: Scheduler, problem: Problem, masks: list[Floats]) -> None:
    flow = _begun(claims, scheduler, problem)
    for _ in range(len(masks) // 2):
        _step(claims, problem, flow, None)
    with claims.during("state_dict() fails"):
        state = copy.deepcopy(flow.state_dict())
    odd = [k for k, v in state.items() if not _plain(v)]
    claims.hold(
        not odd, f"state_dict() holds {', '.join(map(repr, odd))}, of other types than numbers, text and arrays"
    )
    fresh = _begun(claims, scheduler, problem)
    with claims.during("load_state_dict() fails"):
        fresh.load_state_dict(state)
    rest = list(_run(claims, problem, fresh, None))
    claims.hold(_same(rest, masks[len(masks) // 2 :]), "a run that was saved and loaded goes on with other masks")


def _check_short(claims: Claims, scheduler: Scheduler, problem: Problem) -> None:
    """One step: done at once, or refused by a PluginError."""
    try:
        flow = scheduler.begin(problem)
    except PluginError:
        return
    except Exception as e:
        raise AssertionError(
            f"{claims.who}: steps=1 must be refused by a PluginError, not a {type(e).__name__}: {e}"
        ) from e
    for _ in _run(claims, problem, flow, None):
        pass


def _values(problem: Problem, seed: int) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.normal(size=len(g)) for g in problem.graph.groups}


def _same(a: list[Floats], b: list[Floats]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.ndarray, np.generic))
