"""The public functions: trace, and prune, which is trace, score, plan, rewrite and verify in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from fxprune.adapter import Adapter, find_adapter
from fxprune.graph.channels import ChannelGraph, analyse
from fxprune.rewriting.compensation import compensated
from fxprune.planning.limits import Constraints
from fxprune.scoring.context import Loss
from fxprune.planning.costs.model import CostModel
from fxprune.errors import BudgetError, InputsError, PlanError
from fxprune.planning.costs.latency import latency_of
from fxprune.pruning.realize import Clock, Made, finished, make, reported
from fxprune.planning.plan import Plan
from fxprune.planning.planner import asked_share, check_budget
from fxprune.planning.planner import plan as make_plan
from fxprune.planning.ranking import Curves
from fxprune.reporting.report import report
from fxprune.planning.rounding import multiple
from fxprune.scoring.saliency import Normalization
from fxprune.training.scheduler import Scheduler, scheduler_of
from fxprune.scoring.score import Criterion, needs_of, score
from fxprune.planning.selectors import Ignore, named
from fxprune.scoring.timesteps import Timesteps
from fxprune.graph.trace import ExampleInputs, as_inputs, whole

if TYPE_CHECKING:
    from fxprune.training.options import Training

M = TypeVar("M")
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
    whole(model)
    inputs = as_inputs(find_adapter(model).example_inputs(model) if example_inputs is None else example_inputs)
    return analyse(model, inputs, PREFER[attention])


def prune(
    model: M,
    criterion: str | type[Any] | Criterion = "gradflow",
    ratio: float | None = None,
    *,
    of: str = "params",
    target: float | None = None,
    ratios: Mapping[str, float] | Curves | None = None,
    example_inputs: ExampleInputs | None = None,
    data: Iterable[Any] | None = None,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    timesteps: str | Timesteps | None = None,
    scheduler: str | Scheduler = "one_shot",
    steps: int | None = None,
    training: Training | None = None,
    attention: str = "heads",
    ignore: Ignore = (),
    round_to: int | str = 1,
    min_width: int = 1,
    max_ratio: float | None = None,
    exact_norms: bool = False,
    scope: str | None = None,
    granularity: str = "channel",
    normalize: Normalization | None = None,
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
        ratio: share of `of` to remove, in [0, 1); None: 0.4, unless `target` or `ratios` by name is given.
        of: "params", "macs", "channels", "memory" or "latency" (see `plan`); a latency is confirmed by timing both
            models afterwards, unless `verify` is off.
        target: see `plan`.
        ratios: see `plan`.
        example_inputs: see `trace`.
        data: batches for the criterion; None: the model's adapter makes `samples` of them (a diffusion model samples
            itself). With `steps`, the batches to train with: a list, a DataLoader, or another iterable.
        loss: `loss(model, batch) -> scalar`; None: the adapter's.
        timesteps: which times of a diffusion process the adapter's loss sees: a `Timesteps`, or the name of its rule
            ("uniform", "snr", "threshold"); None: uniform.
        scheduler: when how much goes: "one_shot", or a name (see `fxprune list`) or an instance such as `Soft()` that
            prunes while the model trains, for which `steps` or `training` is needed.
        steps: train for so many steps: while the masks move, or after the cut of "one_shot". Short for
            `training=Training(steps)`.
        training: see `fxprune.Training`.
        attention: prune whole "heads", the "head_dim" of all heads, or "both", one after the other.
        ignore: what stays as it is: names or globs of tensors or modules, module types such as `nn.Conv2d`, and
            callables `(tensor name, module that holds it) -> bool`.
        round_to: see `plan`.
        min_width: see `plan`.
        max_ratio: see `plan`.
        exact_norms: see `plan`.
        scope: see `plan`.
        granularity: "channel", "block" (residual branches go whole), or "both"; see `plan`.
        normalize: see `score`.
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
    if ratio is None and target is None and not isinstance(ratios, Mapping):
        ratio = 0.4
    check_budget(ratio, target, of)
    limits: dict[str, Any] = {"ratios": ratios, "round_to": round_to, "min_width": min_width, "max_ratio": max_ratio}
    limits |= {"exact_norms": exact_norms, "scope": scope}
    Constraints(  # raises before the work, not after it
        **({k: v for k, v in limits.items() if v is not None} | {"round_to": multiple(round_to)})
    )
    if steps is not None or training is not None:
        rest = {k: v for k, v in locals().items() if k not in ("model", "scheduler", "steps", "training", "limits")}
        return _trained(model, scheduler_of(scheduler), steps, training, rest)
    if not scheduler_of(scheduler).at_once:
        raise InputsError(
            f"scheduler={scheduler!r} prunes while the model trains: pass steps=, such as 2000, and data="
        )
    if data is not None and not isinstance(data, (torch.Tensor, Mapping, str)):  # these are no batches: score() says so
        data = list(data)
    if attention == "both":
        same = {k: v for k, v in locals().items() if k not in ("model", "ratio", "target", "attention", "limits")}
        return _prune_both(model, ratio, target, same)
    needs = needs_of(criterion)
    adapter = seeing(find_adapter(model), timesteps)
    net, back = adapter.unwrap(model)
    clock = Clock()
    with clock("trace"):
        graph = trace(net, example_inputs, attention=attention)
    with clock("score"):
        batches, how = _data_and_loss(adapter, model, needs, data, loss, samples, seed, progress)
    limits |= {"target": target, "granularity": granularity}
    limits |= {"ignore": (*named(net, ignore), *adapter.protect(net))}
    known: dict[str, Any] = {}

    def planned(graph: ChannelGraph) -> Plan:
        with clock("score"):
            how_much: dict[str, Any] = {"normalize": normalize, "seed": seed, "progress": progress, "reuse": known}
            scores = score(graph, net, criterion, data=batches, loss=how, **how_much)
        if of == "latency":
            with clock("measure"):
                latency_of(graph, progress)
        with clock("plan"):
            return make_plan(graph, scores, ratio, of, **limits)

    def base(plan: Plan, graph: ChannelGraph) -> nn.Module:
        with clock("score"):
            return compensated(
                graph, net, plan, criterion, data=batches, loss=how, seed=seed, progress=progress, reuse=known
            )

    made = make(base, graph, planned, clock, verify, strict)
    pruned: M = back(reported(net, made, clock, inplace, seed))
    return pruned


def _trained(model: M, scheduler: Scheduler, steps: int | None, training: Training | None, rest: dict[str, Any]) -> M:
    try:
        from fxprune.training.run import trained
        from fxprune.training.options import Training
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "accelerate":
            raise
        raise InputsError('training needs accelerate: pip install "fxprune[train]"') from e
    if steps is not None and training is not None:
        raise InputsError(f"steps={steps} and training= both set the steps; pass training=Training(steps={steps}, ...)")
    made: M = trained(model, scheduler, training or Training(steps or 0), rest)
    return made


def _prune_both(model: M, ratio: float | None, target: float | None, options: dict[str, Any]) -> M:
    """Whole heads first, then dimensions of those that stay, an equal share each time."""
    if isinstance(options["ratios"], Mapping):
        raise BudgetError("attention='both' prunes twice, and ratios= would count twice; prune heads, then head_dim")
    if target is not None:
        graph = trace(find_adapter(model).unwrap(model)[0], options["example_inputs"])
        ratio = asked_share(CostModel(graph), None, target, options["of"])
    assert ratio is not None
    once = prune(model, ratio=1 - (1 - ratio) ** 0.5, attention="heads", **options)
    first = report(once).plan.achieved
    options["granularity"] = "channel"  # blocks have gone already
    return prune(once, ratio=max(0.0, 1 - (1 - ratio) / (1 - first)), attention="head_dim", **options)


def apply(
    model: M,
    plan: Plan,
    *,
    example_inputs: ExampleInputs | None = None,
    inplace: bool = False,
    verify: bool = True,
    strict: bool = False,
) -> M:
    """Replay a plan: on the model it was made for, or on another checkpoint of the same architecture.

    Args:
        model: with the weights to cut, such as an EMA copy or a fine-tuned sibling; or a pipeline around it. It is
            left as it is, unless `inplace`.
        plan: from `fxprune.plan`, from `fxprune.report(small).plan`, or from `Plan.from_json`.
        example_inputs: of the same structure and sizes as those that the plan was made with; see `trace`.
        inplace: see `prune`.
        verify: see `prune`.
        strict: see `prune`.

    Raises:
        PlanError: the plan was made for another architecture.

    >>> import torch, fxprune
    >>> net, ema = (torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Linear(32, 2)) for _ in range(2))
    >>> small = fxprune.prune(net, "magnitude", 0.5, example_inputs=torch.ones(1, 8), progress=False)
    >>> fxprune.apply(ema, fxprune.report(small).plan, example_inputs=torch.ones(1, 8))[0].out_features
    16
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan is a {type(plan).__name__}; an edited plan becomes one with .on(graph)")
    net, back = find_adapter(model).unwrap(model)
    graph = trace(net, example_inputs, attention=plan.traced[0]).revised(plan.traced[1:])
    plan.check(graph)
    applied: M = back(finished(net, graph, plan, verify, strict, inplace=inplace))
    return applied


def settled(
    net: nn.Module, ratio: float, of: str, limits: Mapping[str, Any], example: ExampleInputs | None, attention: str
) -> Made:
    """A trial cut by magnitude: the graph that the module's Python can follow, and proof that the ratio is in reach."""
    graph = trace(net, example, attention=attention)

    def planned(graph: ChannelGraph) -> Plan:
        return make_plan(graph, score(graph, net, "magnitude"), ratio, of, **limits)

    return make(lambda *_: net, graph, planned, Clock(), verify=True, strict=False)


def calibration(
    model: Any,
    samples: int = 8,
    *,
    timesteps: str | Timesteps | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[Any], Loss]:
    """The data and the loss that `prune` uses where it is given none, for `score` and for training.

    Args:
        model: a model or pipeline whose family can make its own data: a diffusion model, or an autoencoder.
        samples: how many, in all batches together.
        timesteps: see `prune`.
        seed: for everything drawn at random.
        progress: show a progress bar.

    Returns:
        Batches, and `loss(model, batch) -> scalar`, a fixed function of the weights, which also takes batches of your
        own (`docs/diffusion.md`).

    Raises:
        InputsError: where the family has no loss, or cannot make data.
    """
    adapter = seeing(find_adapter(model), timesteps)
    loss, batches = adapter.loss_of(model, seed), adapter.calibration(model, samples, seed, progress)
    if loss is None or batches is None:
        raise InputsError(f"fxprune has no {'loss' if loss is None else 'data'} for {type(model).__name__}: bring both")
    return batches, loss


def seeing(adapter: Adapter, timesteps: str | Timesteps | None) -> Adapter:
    """The adapter, with losses at such times."""
    return adapter if timesteps is None else adapter.seeing(timesteps)


def _data_and_loss(
    adapter: Adapter,
    model: Any,
    needs: frozenset[str],
    data: Iterable[Any] | None,
    loss: Callable[[nn.Module, Any], Any] | None,
    samples: int,
    seed: int,
    progress: bool,
) -> tuple[Iterable[Any] | None, Callable[[nn.Module, Any], Any] | None]:
    """What the caller gave, completed by the adapter as far as the criterion needs it."""
    if "data" in needs and data is None:
        data = adapter.calibration(model, samples, seed, progress)
    if needs & {"loss", "forward"} and loss is None:
        loss = adapter.loss_of(model, seed)
    return data, loss
