"""The public functions: trace, and prune, which is trace, score, plan, rewrite and verify in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from fxprune import registry
from fxprune.adapter import Adapter, find_adapter
from fxprune.channels import ChannelGraph, analyse
from fxprune.errors import BudgetError, InputsError, RewriteError, VerifyError
from fxprune.plan import Plan
from fxprune.planner import plan as make_plan
from fxprune.report import Report, attach, causes, is_pruned, report
from fxprune.rewrite import Rewritten, UnsolvedError, rewrite, transplant
from fxprune.score import Criterion, score
from fxprune.trace import ExampleInputs, as_inputs
from fxprune.verify import Check, check_dense, same_batches

M = TypeVar("M")
REPLANS = 8  # times that a plan is made anew because the module's Python could not follow it
PREFER = {"heads": ("heads", "head_dim"), "head_dim": ("head_dim", "heads")}


def trace(model: nn.Module, example_inputs: ExampleInputs | None = None, *, attention: str = "heads") -> ChannelGraph:
    """Capture a model and find its channels.

    Args:
        model: any module that `torch.export` can capture; it is left as it is.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or the pair
            `(args_tuple, kwargs_dict)`; None: the adapter of the model's family makes them.
        attention: what goes from an attention: whole "heads", or "head_dim" (the same dimensions of every head).

    Raises:
        InputsError: where no adapter knows example inputs, or the model does not run on them.
        TraceError: where `torch.export` cannot capture the model.
    """
    if attention not in PREFER:
        raise InputsError(f"attention={attention!r} is unknown; choose heads or head_dim (or both, in prune())")
    if not isinstance(model, nn.Module):
        raise InputsError(
            f"model is a {type(model).__name__}; pass an nn.Module (or, to prune(), a diffusers pipeline)"
        )
    inputs = as_inputs(find_adapter(model).example_inputs(model) if example_inputs is None else example_inputs)
    return analyse(model, inputs, PREFER[attention])


@dataclass
class _Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def prune(
    model: M,
    criterion: str | type[Any] | Criterion = "gradflow",
    ratio: float = 0.4,
    *,
    of: str = "params",
    example_inputs: ExampleInputs | None = None,
    data: Iterable[Any] | None = None,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    scheduler: str = "one_shot",
    attention: str = "heads",
    ignore: Sequence[str] = (),
    round_to: int = 1,
    max_ratio: float | None = None,
    exact_norms: bool = False,
    scope: str = "global",
    inplace: bool = False,
    verify: bool = True,
    strict: bool = False,
    samples: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> M:
    """A smaller dense model of the same class.

    Args:
        model: any module that `torch.export` can capture, or a diffusers pipeline (then its denoiser is pruned, and a
            pipeline comes back). It is left as it is, unless `inplace`.
        criterion: a name (see `fxprune list`), a criterion, or a callable `(ctx) -> {tensor or group: scores}`.
        ratio: share of `of` to remove, in [0, 1).
        of: "params", "macs" or "channels".
        example_inputs: see `trace`.
        data: batches for the criterion; None: the model's adapter makes `samples` of them (a diffusion model samples
            itself).
        loss: `loss(model, batch) -> scalar`; None: the adapter's.
        scheduler: "one_shot".
        attention: prune whole "heads", the "head_dim" of all heads, or "both", one after the other.
        ignore: names or globs of tensors or modules that stay as they are.
        round_to: see `plan`.
        max_ratio: see `plan`.
        exact_norms: see `plan`.
        scope: see `plan`.
        inplace: change `model` itself.
        verify: prove masked = dense (two forwards); without it nothing is run after the rewrite.
        strict: raise rather than run the rewritten graph as the forward.
        samples: calibration samples where the adapter makes the data.
        seed: for everything drawn at random.
        progress: show progress bars.

    Returns:
        The smaller model (or pipeline), in the training mode of the given one; `fxprune.report(small)` tells the rest.

    Raises:
        FxPruneError: one of its kinds for bad input; the model is then unchanged.

    Example:
        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> small = fxprune.prune(net, "magnitude", 0.5, example_inputs=torch.randn(1, 8), progress=False)
        >>> small[0].out_features
        16
    """
    if not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio} is outside [0, 1): it is the share of {of} to remove, such as 0.4")
    if data is not None and not isinstance(data, (torch.Tensor, Mapping, str)):  # these are no batches: score() says so
        data = list(data)
    if attention == "both":
        same = {k: v for k, v in locals().items() if k not in ("model", "ratio", "attention")}
        return _prune_both(model, ratio, same)
    asked = registry.get("criteria", criterion) if isinstance(criterion, str) else criterion
    registry.get("schedulers", scheduler)
    adapter = find_adapter(model)
    net, back = adapter.unwrap(model)
    clock = _Clock()
    with clock("trace"):
        graph = trace(net, example_inputs, attention=attention)
    with clock("score"):
        batches, how = _data_and_loss(adapter, model, asked, data, loss, samples, seed, progress)
    limits: dict[str, Any] = {"round_to": round_to, "max_ratio": max_ratio, "exact_norms": exact_norms, "scope": scope}
    limits["ignore"] = (*ignore, *adapter.protect(net))

    known: dict[str, Any] = {}

    def planned(graph: ChannelGraph) -> Plan:
        with clock("score"):
            scores = score(graph, net, criterion, data=batches, loss=how, seed=seed, progress=progress, reuse=known)
        with clock("plan"):
            return make_plan(graph, scores, ratio, of, **limits)

    made = _apply(net, graph, planned, clock, verify, strict)
    small = transplant(net, made.done.model) if inplace else made.done.model
    seconds = dict(clock.seconds)
    checks = () if made.check is None else (made.check,)
    told = Report(
        made.plan, made.done.changes, checks, made.done.forward, made.reason, causes(made.graph), seconds, seed=seed
    )
    attach(small, told.after(report(net)) if is_pruned(net) else told)
    pruned: M = back(small)
    return pruned


def _prune_both(model: M, ratio: float, options: dict[str, Any]) -> M:
    """Whole heads first, then dimensions of those that stay, an equal share each time."""
    each = 1 - (1 - ratio) ** 0.5
    once = prune(model, ratio=each, attention="heads", **options)
    first = report(once).plan.achieved
    return prune(once, ratio=max(0.0, 1 - (1 - ratio) / (1 - first)), attention="head_dim", **options)


@dataclass(frozen=True)
class _Made:
    """A rewritten model with the graph and plan it came from, and why its forward is the graph, if it is."""

    graph: ChannelGraph
    plan: Plan
    done: Rewritten
    check: Check | None
    reason: str = ""


def _apply(
    net: nn.Module,
    graph: ChannelGraph,
    planned: Callable[[ChannelGraph], Plan],
    clock: _Clock,
    verify: bool,
    strict: bool,
) -> _Made:
    """Plan and rewrite until the module's own Python follows; else let the graph be the forward (not with `strict`)."""
    try:
        plan = first = planned(graph)
    except BudgetError as e:
        if strict or (made := _beyond(net, graph, planned, clock, verify, e)) is None:
            raise
        return made
    original, trouble, literals = graph, "", graph.literals
    for _ in range(REPLANS):
        try:
            return _attempt(net, graph, plan, clock, verify, "module", trouble="")
        except UnsolvedError as e:
            trouble = trouble or str(e)
            graph = graph.holding(e.equation)
        except VerifyError as e:
            trouble = trouble or str(e)
            if graph.streamed:
                graph = graph.coarser()
            elif literals:
                graph, literals = graph.holding(*literals), ()
            else:
                break
        try:
            plan = planned(graph)
        except BudgetError:
            break
    if strict:
        raise RewriteError(f"{trouble}; without strict=True the rewritten graph becomes the model's forward")
    return _attempt(net, original, first, clock, verify, "graph", trouble)


def _beyond(
    net: nn.Module,
    graph: ChannelGraph,
    planned: Callable[[ChannelGraph], Plan],
    clock: _Clock,
    verify: bool,
    missed: BudgetError,
) -> _Made | None:
    """The graph as the forward, where the budget is out of reach only for the sake of the module's own Python."""
    graph = graph.uncoupled()
    how_far = "the budget" if missed.reachable is None else f"more than {missed.reachable:.1%}"
    trouble = (
        f"the forward of {type(net).__name__} computes with sizes that couple axes, and could not follow {how_far}"
    )
    try:
        return _attempt(net, graph, planned(graph), clock, verify, "graph", trouble)
    except (BudgetError, RewriteError, VerifyError):
        return None


def _attempt(
    net: nn.Module, graph: ChannelGraph, plan: Plan, clock: _Clock, verify: bool, forward: str, trouble: str
) -> _Made:
    with clock("rewrite"):
        done = rewrite(net, graph, plan, forward=forward)
    if not verify:
        return _Made(graph, plan, done, None, trouble)
    with clock("verify"):
        check = check_dense(net, done.model, graph, plan)
    if not check.ok:
        raise VerifyError(f"{check} for {type(net).__name__}; the given model is unchanged")
    if forward == "graph" and not same_batches(net, done.model, graph):
        raise RewriteError(
            f"{trouble}; the rewritten graph could be the forward of {type(net).__name__}, but only for the batch size "
            "of the example inputs: trace with the batch size you need and verify=False, or keep that part with ignore="
        )
    return _Made(graph, plan, done, check, trouble)


def _data_and_loss(
    adapter: Adapter,
    model: Any,
    criterion: Any,
    data: Iterable[Any] | None,
    loss: Callable[[nn.Module, Any], Any] | None,
    samples: int,
    seed: int,
    progress: bool,
) -> tuple[Iterable[Any] | None, Callable[[nn.Module, Any], Any] | None]:
    """What the caller gave, completed by the adapter as far as the criterion needs it."""
    needs: frozenset[str] = getattr(criterion, "needs", frozenset())
    if "data" in needs and data is None:
        data = adapter.calibration(model, samples, seed, progress)
    if "loss" in needs and loss is None:
        loss = adapter.loss_of(model, seed)
    return data, loss
