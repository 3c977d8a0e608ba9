"""One cut: trace, score, plan, rewrite and verify, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from fxprune.adapter import Adapter, find_adapter
from fxprune.arguments import MODULE, shown, takes
from fxprune.errors import BudgetError, InputsError, PlanError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.kept import analysed
from fxprune.graph.modules import ExampleInputs, as_inputs, require_whole
from fxprune.graph.offloading import at_rest
from fxprune.graph.outputs import Outputs, Wanted
from fxprune.graph.packing import copied, packed
from fxprune.graph.turns import in_turn
from fxprune.planning.budget import Budget
from fxprune.planning.cost_model import CostModel
from fxprune.planning.latency import latency_of
from fxprune.planning.limits import Limits
from fxprune.planning.names import require_shares
from fxprune.planning.plan import Plan
from fxprune.planning.planner import planned
from fxprune.planning.selection import checked
from fxprune.planning.selectors import Ignore, named, require_known
from fxprune.pruning.attempt import Clock, Realized
from fxprune.pruning.finish import finished, reported
from fxprune.pruning.given import given_to, seeing
from fxprune.pruning.intervals import Activations
from fxprune.pruning.meeting import met
from fxprune.pruning.optimizers import warn_holders
from fxprune.pruning.order import LossFunction, Order, Scoring
from fxprune.pruning.realize import realize
from fxprune.pruning.replacing import Replacement, recorded
from fxprune.pruning.stock import constructor_of, replayed, stock_once
from fxprune.pruning.together import agreed, parts_of, put_together, require_alike
from fxprune.reporting.report import attach, is_pruned, report
from fxprune.rewriting.compensation import compensated, makes_up
from fxprune.rewriting.rewrite import transplant
from fxprune.scoring.entire import kept
from fxprune.scoring.score import Criterion, Scores, score
from fxprune.scoring.streaming import as_batches
from fxprune.scoring.timesteps import Timesteps

M = TypeVar("M")
PREFER = {"heads": ("heads", "head_dim"), "head_dim": ("head_dim", "heads")}


@takes(model=MODULE)
def trace(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    attention: str = "heads",
    outputs: Wanted | None = None,
) -> ChannelGraph:
    """Capture a model and find its channels.

    Args:
        model: any module that `torch.export` can capture; it is left as it is.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or the pair
            `(args_tuple, kwargs_dict)`; None: the adapter of the model's family makes them.
        attention: what goes from an attention: whole "heads", or "head_dim" (the same dimensions of every head).
        outputs: which outputs of the model count: their channels stay, and proofs compare them. Names (a key, an
            attribute, the number of an item, such as "logits" or "0.boxes"), or a function of what the model returns;
            None: all, but for caches that only the model itself reads. Where train mode returns another structure, all
            of it counts.

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
    require_whole(model)
    adapter = find_adapter(model)
    with in_turn, torch.inference_mode(False), at_rest(model):
        inputs = as_inputs(adapter.example_inputs(model) if example_inputs is None else example_inputs)
        return analysed(model, copied(packed(inputs)), PREFER[attention], Outputs(outputs, adapter.released(model)))


def moved_alike(model: M, work: Callable[[], M]) -> M:
    """What `work` makes of a model or pipeline whose weights are at rest meanwhile; those of what comes back are moved
    as the model's own (see `fxprune.graph.offloading`)."""
    net = find_adapter(model).unwrap(model)[0]
    with at_rest(net) as how:
        made = work()
    small = find_adapter(made).unwrap(made)[0]
    return made if small is net else how.again(made, small)


def prune_once(model: M, order: Order) -> M:
    """The smaller model (or pipeline) that an order asks for, without training."""
    with put_together(model, order) as whole:
        if whole is model:
            return moved_alike(model, lambda: _pruned_once(model, order))
        with parts_of(order.scoring.data):
            small: M = _pruned_once(whole, order)
        kept(find_adapter(small).unwrap(small)[0])
    require_alike(small)
    return small


@torch.inference_mode(False)
def _pruned_once(model: M, order: Order) -> M:
    scoring = order.scoring
    scoring = replace(scoring, data=as_batches(scoring.data, scoring.max_batches))
    order = replace(order, scoring=scoring)
    if order.attention == "both" and order.limits.shape == "free":
        return _prune_both(model, order)
    adapter = seeing(find_adapter(model), scoring.timesteps, scoring.loss is None or scoring.data is None)
    net, back = adapter.unwrap(model)
    clock = Clock()
    stock = None if order.limits.shape == "free" else constructor_of(net, adapter, order.limits.shape)

    def traced(attention: str) -> ChannelGraph:
        with clock("trace"):
            return trace(net, order.example_inputs, attention=attention, outputs=order.outputs)

    graph = traced("heads" if order.attention == "both" else order.attention)
    with clock("score"):
        given = {**given_to(adapter, model, scoring, order.seed, order.progress), "reuse": {}}
    require_known(graph, ignore := named(net, order.limits.ignore))
    limits = replace(order.limits, ignore=(*ignore, *adapter.protect(net)))
    require_shares(graph, limits.stated, limits.ignore)

    scored: list[Scores] = []
    known: list[tuple[ChannelGraph, Scores]] = []

    def scores_of(graph: ChannelGraph) -> Scores:
        if not graph.groups:
            checked(graph, {})
        if (before := next((scores for g, scores in known if g is graph), None)) is not None:
            scored.append(before)
            return before
        with clock("score"):
            scores = agreed(score(graph, net, scoring.criterion, normalize=scoring.normalize, **given), net)
        scored.append(scores)
        known.append((graph, scores))
        if order.budget.of == "latency":
            with clock("measure"):
                latency_of(graph, order.progress)
        return scores

    corrections: list[str] = []

    def base(plan: Plan, graph: ChannelGraph) -> nn.Module:
        corrections.clear()
        with clock("score"):
            return compensated(graph, net, plan, scoring.criterion, notes=corrections, **given)

    if stock is not None:
        graphs, before = {graph.prefer[0]: graph}, report(net) if is_pruned(net) else None
        made, told = stock_once(
            net, stock, order, limits, lambda mode: graphs.pop(mode, None) or traced(mode), scores_of, base, clock
        )
        told = replace(told, scoring=(*told.scoring, *corrections))
        replaced = list(net.parameters()) if order.inplace else []
        small = transplant(net, made) if order.inplace else made
        warn_holders(replaced)
        attach(small, told.after(before) if before is not None else told)
        whole: M = back(small)
        return whole

    lines = _replacement(adapter, model, net, graph, order) if order.replace is not None else None

    def cut_to(graph: ChannelGraph, budget: Budget) -> Realized:
        def plan_of(graph: ChannelGraph) -> Plan:
            by_scores = lines is None or order.granularity != "block"
            scores: Scores | dict[str, Any] = scores_of(graph) if by_scores else {}
            with clock("plan"):
                chosen = None if lines is None else lines.choose
                return planned(graph, scores, budget, limits, order.granularity, chosen)

        return realize(base, graph, plan_of, clock, order.verify, order.strict, limits.exact_norms)

    cut = cut_to(graph, order.budget)
    if order.budget.of == "latency" and order.verify:
        with clock("confirm"):
            cut = met(net, cut, order.budget, cut_to)
    notes: tuple[str, ...] = ()
    if lines is not None:
        with clock("fit"):
            cut, notes = lines.install(cut)
    small = reported(net, cut, clock, order.inplace, order.seed, scored, limits.legal_for)
    if notes:
        attach(small, replace(report(small), fitted=notes))
    if corrections:
        attach(small, replace(report(small), scoring=(*report(small).scoring, *corrections)))
    pruned: M = back(small)
    return pruned


def _replacement(adapter: Adapter, model: Any, net: nn.Module, graph: ChannelGraph, order: Order) -> Replacement:
    """What chooses blocks and puts linear maps in their place: the model's activations where the loss calls it."""
    given = given_to(adapter, model, order.scoring, order.seed, order.progress, frozenset(("data", "loss")))
    calls = tuple(recorded(net, given["data"], given["loss"], order.seed))
    seen = trace(net, calls[0], attention=graph.prefer[0], outputs=order.outputs)
    return Replacement(Activations(net, seen, calls))


def _prune_both(model: M, order: Order) -> M:
    """Whole heads first, then dimensions of those that stay, an equal share each time."""
    if isinstance(order.limits.ratios, Mapping):
        raise BudgetError("attention='both' prunes twice, and ratios= would count twice; prune heads, then head_dim")
    ratio, of = order.budget.ratio, order.budget.of
    if order.budget.target is not None:
        net = find_adapter(model).unwrap(model)[0]
        ratio = order.budget.share(CostModel(trace(net, order.example_inputs, outputs=order.outputs)))
    assert ratio is not None
    once = _pruned_once(model, replace(order, budget=Budget(1 - (1 - ratio) ** 0.5, of), attention="heads"))
    rest = max(0.0, 1 - (1 - ratio) / (1 - report(once).plan.achieved))
    # blocks have gone already
    return _pruned_once(once, replace(order, budget=Budget(rest, of), attention="head_dim", granularity="channel"))


@takes()
@torch.inference_mode(False)  # what is made there nobody could train
def apply(
    model: M,
    plan: Plan,
    *,
    example_inputs: ExampleInputs | None = None,
    outputs: Wanted | None = None,
    criterion: str | type[Any] | Criterion | None = None,
    data: Iterable[Any] | None = None,
    loss: LossFunction | None = None,
    timesteps: str | Timesteps | None = None,
    samples: int = 8,
    inplace: bool = False,
    verify: bool = True,
    strict: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> M:
    """Replay a plan: on the model it was made for, or on another checkpoint of the same architecture.

    Args:
        model: with the weights to cut, such as an EMA copy or a fine-tuned sibling; or a pipeline around it. It is
            left as it is, unless `inplace`.
        plan: from `fxprune.plan`, from `fxprune.search(...).best`, from `fxprune.report(small).plan`, or from
            `Plan.from_json`.
        example_inputs: of the same structure and sizes as those that the plan was made with; see `trace`.
        outputs: the same as the plan was made with; see `trace`.
        criterion: one that corrects what stays, such as "obs"; None: the weights that stay are as they were.
        data: batches for its correction; None: the model's adapter makes `samples` of them.
        loss: how the model runs on a batch; None: the adapter's.
        timesteps: see `prune`.
        samples: see `prune`.
        inplace: see `prune`.
        verify: see `prune`.
        strict: see `prune`.
        seed: see `prune`.
        progress: see `prune`.

    Raises:
        PlanError: the plan was made for another architecture.
        InputsError: `criterion` corrects nothing, or `data`, `loss` or `timesteps` are given without one.

    >>> import torch, fxprune
    >>> net, ema = (torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Linear(32, 2)) for _ in range(2))
    >>> small = fxprune.prune(net, "magnitude", 0.5, example_inputs=torch.ones(1, 8), progress=False)
    >>> fxprune.apply(ema, fxprune.report(small).plan, example_inputs=torch.ones(1, 8))[0].out_features
    16
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan is a {type(plan).__name__}; an edited plan becomes one with .on(graph)")
    if criterion is None and any(x is not None for x in (data, loss, timesteps)):
        raise InputsError(
            'apply() reads data=, loss= and timesteps= to correct what stays: pass criterion="obs", or leave them out'
        )
    if criterion is not None and not makes_up(criterion):
        raise InputsError(
            f"criterion={shown(criterion)} corrects nothing, and the plan says what goes: pass one that does, such as "
            '"obs", or leave it out'
        )

    def applied() -> M:
        adapter = seeing(find_adapter(model), timesteps, loss is None or data is None)
        net, back = adapter.unwrap(model)
        graph = trace(net, example_inputs, attention=plan.traced[0], outputs=outputs).revised(plan.traced[1:])
        plan.check(graph)
        base, notes = net, list[str]()
        if criterion is not None:
            given = given_to(adapter, model, Scoring(criterion, data=data, loss=loss, samples=samples), seed, progress)
            base = compensated(graph, net, plan, criterion, notes=notes, **given)
        if plan.config:
            made = replayed(base, constructor_of(net, find_adapter(net), "stock"), graph, plan)
            cut = transplant(net, made.model) if inplace else made.model
            attach(cut, replace(made.report, scoring=(*made.report.scoring, *notes)))
            stock: M = back(cut)
            return stock
        cut = finished(net, graph, plan, verify, strict, inplace=inplace, base=base)
        attach(cut, replace(report(cut), scoring=(*report(cut).scoring, *notes)))
        small: M = back(cut)
        return small

    with in_turn:
        return moved_alike(model, applied)


def settled(
    net: nn.Module,
    budget: Budget,
    limits: Limits,
    example: ExampleInputs | None,
    attention: str,
    known: Ignore = (),
    outputs: Wanted | None = None,
) -> Realized:
    """A trial cut by magnitude: the graph that the module's Python can follow, and proof that the ratio is in reach.

    Args:
        known: what must be there of `limits.ignore`: an adapter protects names that a model need not have.

    Raises:
        InputsError: something in `known` is not.
    """
    graph = trace(net, example, attention=attention, outputs=outputs)
    require_known(graph, known)
    return settled_on(graph, net, budget, limits)


def settled_on(graph: ChannelGraph, net: nn.Module, budget: Budget, limits: Limits) -> Realized:
    """`settled`, the model already traced."""

    def plan_of(graph: ChannelGraph) -> Plan:
        return planned(graph, score(graph, net, "magnitude"), budget, limits)

    return realize(lambda *_: net, graph, plan_of, Clock(), verify=True, strict=False, exact=limits.exact_norms)
