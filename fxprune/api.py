"""The public functions that take a whole order: prune, and what it uses where it is given no data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from fxprune.adapter import find_adapter
from fxprune.arguments import COUNT, Kind, takes
from fxprune.errors import InputsError
from fxprune.graph.modules import ExampleInputs
from fxprune.graph.offloading import at_rest, require_unmoved
from fxprune.graph.outputs import Wanted
from fxprune.graph.turns import in_turn
from fxprune.planning.budget import Budget
from fxprune.planning.limits import Limits
from fxprune.planning.options import gathered
from fxprune.planning.ranking import Curves
from fxprune.planning.selectors import Ignore
from fxprune.pruning.given import seeing
from fxprune.pruning.order import Order, Scoring
from fxprune.pruning.prune import prune_once
from fxprune.pruning.replacing import require_replaceable
from fxprune.scoring.context import Loss
from fxprune.scoring.saliency import Normalization
from fxprune.scoring.score import DEFAULT_CRITERION, Criterion
from fxprune.scoring.timesteps import Timesteps
from fxprune.training.options import Training
from fxprune.training.scheduler import Scheduler, scheduler_of

M = TypeVar("M")
TRAINING = Kind("an fxprune.Training, or None", lambda v: v is None or isinstance(v, Training))


@takes(training=TRAINING)
def prune(
    model: M,
    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION,
    ratio: float | None = None,
    *,
    of: str = "params",
    target: float | None = None,
    ratios: Mapping[str, float] | Curves | None = None,
    example_inputs: ExampleInputs | None = None,
    outputs: Wanted | None = None,
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
    legal_for: str | None = None,
    shape: str | Callable[..., Any] = "free",
    nearest: bool = False,
    granularity: str = "channel",
    replace: str | None = None,
    normalize: Normalization | None = None,
    inplace: bool = False,
    verify: bool = True,
    strict: bool = False,
    samples: int = 8,
    max_batches: int | None = None,
    seed: int = 0,
    progress: bool = True,
    budget: Budget | None = None,
    limits: Limits | None = None,
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
        outputs: which outputs of the model count; see `trace`.
        data: batches for the criterion; None: the model's adapter makes `samples` of them (a diffusion model samples
            itself). With `steps`, the batches to train with: a list, a DataLoader, or another iterable. A criterion
            of weights alone ("magnitude") reads neither these nor the loss; they may be given, so that one call
            compares criteria.
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
        legal_for: see `plan`; layers where a norm, a head or what is held forbids such a width are in `Report.misfits`.
        shape: "free": every layer gets a width of its own. "stock": only what the class's own constructor can make, a
            plain instance that its library saves and loads (diffusers, transformers, timm, torchvision); in place of
            "stock" that constructor with what it was given, such as `functools.partial(MyNet, width=64)`.
        nearest: with a stock shape, take the nearest that the constructor allows, however far from the budget (else 4
            points at most).
        granularity: "channel", "block" (residual branches go whole), or "both"; see `plan`.
        replace: "linear": blocks go in intervals, those first for which a linear layer can stand best, and one does:
            fitted in closed form on the activations of `data` (`docs/depth.md`). None: nothing stands for them.
        normalize: see `score`.
        inplace: change `model` itself. Its parameters are new ones afterwards: an optimizer made before holds the old
            ones and would train nothing (a warning says so); make a new one.
        verify: prove masked = dense (two forwards); without it nothing is run after the rewrite. A stock shape is
            always proven.
        strict: raise rather than run the rewritten graph as the forward.
        samples: calibration samples where the adapter makes the data.
        max_batches: how many batches of `data` are read to score; None: all, or 1000 where the data tell no length and
            may be endless. A DataLoader is streamed: one batch in memory at a time.
        seed: for everything drawn at random.
        progress: show progress bars.
        budget: `ratio`, `of` and `target` in one value, in their place.
        limits: `ratios`, `ignore`, `round_to`, `min_width`, `max_ratio`, `exact_norms`, `scope`, `shape` and
            `nearest` in one value, in their place.

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
    keywords: dict[str, Any] = {"ratios": ratios, "ignore": ignore, "round_to": round_to, "min_width": min_width}
    keywords |= {"max_ratio": max_ratio, "exact_norms": exact_norms, "scope": scope, "legal_for": legal_for}
    keywords |= {"shape": shape, "nearest": nearest}
    order = Order(
        gathered(Budget, budget, {"ratio": ratio, "of": of, "target": target}),
        gathered(Limits, limits, keywords),
        Scoring(criterion, normalize, data, loss, timesteps, samples, max_batches),
        example_inputs=example_inputs,
        outputs=outputs,
        attention=attention,
        granularity=granularity,
        replace=replace,
        inplace=inplace,
        verify=verify,
        strict=strict,
        seed=seed,
        progress=progress,
    ).asked
    with torch.inference_mode(False):  # what is made there nobody could train
        return _pruned(model, order, scheduler, steps, training)


def _pruned(model: M, order: Order, scheduler: str | Scheduler, steps: int | None, training: Training | None) -> M:
    if order.replace is not None:
        require_replaceable(order.budget.of, order.granularity, order.scoring.criterion)
    if steps is not None or training is not None:
        if order.replace is not None:
            raise InputsError('replace="linear" is for one cut: call prune without steps= or training=, train after it')
        with torch.inference_mode(False):
            return _trained(model, scheduler_of(scheduler), steps, training, order)
    if not scheduler_of(scheduler).at_once:
        raise InputsError(
            f"scheduler={scheduler!r} prunes while the model trains: pass steps=, such as 2000, and data="
        )
    with in_turn:
        return prune_once(model, order)


def _trained(model: M, scheduler: Scheduler, steps: int | None, training: Training | None, order: Order) -> M:
    try:  # accelerate is optional
        from fxprune.training.run import trained
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "accelerate":
            raise
        raise InputsError('training needs accelerate: pip install "fxprune[train]"') from e
    if steps is not None and training is not None:
        raise InputsError(f"steps={steps} and training= both set the steps; pass training=Training(steps={steps}, ...)")
    require_unmoved(find_adapter(model).unwrap(model)[0])
    with in_turn:
        made: M = trained(model, scheduler, training or Training(steps or 0), order)
    return made


@takes()
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
    with in_turn, at_rest(adapter.unwrap(model)[0]):
        loss, batches = adapter.loss_of(model, seed), adapter.calibration(model, samples, seed, progress)
    if loss is None or batches is None:
        raise InputsError(f"fxprune has no {'loss' if loss is None else 'data'} for {type(model).__name__}: bring both")
    return batches, loss


@takes(steps=COUNT)
def trajectory_loss(model: Any, steps: int = 4, samples: int = 4, *, seed: int = 0) -> tuple[list[Any], Loss]:
    """Data and a loss on the final latent of a few-step sampler, for any criterion that reads gradients.

    The mean squared error of what the sampler ends at, to targets drawn around where the dense model's ends: the
    gradient then tells how far each weight moves the end of the trajectory. Every step of the sampler is a checkpoint:
    memory is that of one step, and time that of `steps` forwards and backwards.

    Args:
        model: a diffusion model, or a pipeline around one (whose text encoders make the conditions).
        steps: of the sampler: DDIM, or Euler for flow matching, without guidance.
        samples: trajectories, in all batches together.
        seed: for noise, conditions and targets.

    Returns:
        Batches, and `loss(model, batch) -> scalar`, a fixed function of the weights.

    Raises:
        InputsError: the model is no diffusion model whose sampler is known.

    Example:
        >>> data, loss = fxprune.trajectory_loss(pipeline, steps=4)  # doctest: +SKIP
        >>> small = fxprune.prune(pipeline, "taylor", 0.3, data=data, loss=loss)  # doctest: +SKIP
    """
    with in_turn:
        found = find_adapter(model).trajectories(model, steps, samples, seed)
    if found is None:
        raise InputsError(f"trajectory_loss() is for diffusion models, and this {type(model).__name__} is none")
    return found
