"""From a criterion to one number a channel; low = prune first.

A criterion is any callable `(ctx: Context) -> {name: tensor}`.  It may answer in two ways:

    {tensor name: saliency, of the tensor's shape}     summed into channels by `fxprune.scoring.saliency`
    {group name:  score, one number a channel}         taken as it is

It may declare, as attributes:

    reduction, normalization   defaults for `score`'s arguments
    needs                      a set with "data" where it needs batches, "loss" where it needs the loss's gradients, and
                               "forward" where it only needs the model to run: then data without a loss are its inputs
    moments                    "squares" or "covariances" of inputs, where it gathers them: what they take is foretold
    derivatives                2 where it differentiates twice
    partial                    true where it may have nothing to say about some groups; these are pruned last
    sharded                    true where parameters in shards (FSDP2's DTensors) will do, and the mean gradient; else
                               a sharded model is put together first
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import nn

from fxprune import registry
from fxprune.arguments import MAPPING, MODULE, TEXT, require, takes
from fxprune.errors import CriterionError, FxPruneError, InputsError, printable
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import comes_from, require_whole, seed_torch, sharded
from fxprune.graph.offloading import at_rest
from fxprune.graph.sharding import resharded
from fxprune.graph.turns import in_turn
from fxprune.notebook import shown
from fxprune.scoring import distributed as ranks
from fxprune.scoring.batches import missing, named
from fxprune.scoring.context import Context, Loss
from fxprune.scoring.entire import entire
from fxprune.scoring.folding import REDUCTIONS, Floats, Reduction
from fxprune.scoring.outlook import tell
from fxprune.scoring.parts import SMALLER, out_of_memory
from fxprune.scoring.preservation import attributes_kept, unchanged
from fxprune.scoring.recomputing import recomputing
from fxprune.scoring.saliency import NORMALIZATIONS, Normalization, block_scores, normalized, summed
from fxprune.scoring.sharded import told_whole
from fxprune.scoring.tp_importance import TorchPruningImportance

Criterion: TypeAlias = Callable[[Context], Mapping[str, Any]]
DEFAULT_CRITERION = "gradflow"  # of everything that scores
WEIGHTS = 'criterion="magnitude"'
COMPARED = (DEFAULT_CRITERION, "taylor", "magnitude", "random")  # where a comparison is asked for by no names


@dataclass(frozen=True, eq=False)
class Scores:
    """One number a channel; the lowest are pruned first.

    Attributes:
        values: group name -> float64 array, one number a channel, in the order of the group's channels (read-only).
        criterion: what scored them, for people and for the saved plan.
        unscored: groups about which the criterion had nothing to say; their channels have the largest score there is.
        blocks: block name -> sum of the saliencies of all tensors that go with it.
        additive: whether the scores of several channels add up, so that `plan` may weigh them against what they cost.
        notes: what the criterion tells about how it computed them; not saved, and no part of equality.
    """

    values: Mapping[str, Floats]
    criterion: str
    unscored: tuple[str, ...] = ()
    blocks: Mapping[str, float] = field(default_factory=dict)
    additive: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require("Scores", "values", self.values, MAPPING, CriterionError)
        try:
            copies = {name: np.array(v, np.float64) for name, v in self.values.items()}
        except (TypeError, ValueError) as e:
            raise CriterionError(f"Scores(values=...): a group's scores are no numbers: {e}") from e
        for v in copies.values():
            v.setflags(write=False)
        object.__setattr__(self, "values", copies)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Scores)
            and self.criterion == other.criterion
            and self.blocks == other.blocks
            and self.additive == other.additive
            and self.values.keys() == other.values.keys()
            and all(np.array_equal(v, other.values[name]) for name, v in self.values.items())
        )

    def __repr__(self) -> str:
        channels = sum(len(v) for v in self.values.values())
        lines = [f"Scores by {self.criterion}: {len(self.values)} groups, {channels:,} channels"]
        for name, v in list(self.values.items())[:12]:
            spread = f"{v.min():.3g} ... {np.median(v):.3g} ... {v.max():.3g}" if len(v) else "-"
            lines.append(f"  {name}: {len(v)} channels, {spread}")
        if len(self.values) > 12:
            lines.append(f"  ... and {len(self.values) - 12} more")
        if self.unscored:
            more = f" and {len(self.unscored) - 3} more" if len(self.unscored) > 3 else ""
            lines.append(f"  last, for want of a score: {', '.join(self.unscored[:3])}{more}")
        lines += [f"  {note}" for note in self.notes]
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        rows = [
            (n, len(v), *(f"{f(v):.3g}" for f in (np.min, np.median, np.max))) for n, v in self.values.items() if len(v)
        ]
        return shown(
            f"Scores by {self.criterion}", ["group", "channels", "lowest", "median", "highest"], rows, self.notes
        )

    def to_json(self) -> str:
        """The scores as JSON text; `from_json` gives equal scores."""
        values = {k: v.tolist() for k, v in self.values.items()}
        rest = {"unscored": self.unscored, "blocks": dict(self.blocks), "additive": self.additive}
        return json.dumps({"criterion": self.criterion, "values": values, **rest})

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """The scores that `to_json` wrote.

        Raises:
            CriterionError: the text is none.
        """
        require("Scores.from_json", "text", text, TEXT, CriterionError)
        try:
            held = json.loads(text)
            values = {str(k): _numbers(v) for k, v in held["values"].items()}
            blocks = {str(k): float(v) for k, v in held.get("blocks", {}).items()}
            unscored, additive = tuple(map(str, held.get("unscored", ()))), bool(held.get("additive", False))
            return cls(values, str(held["criterion"]), unscored, blocks, additive)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
            raise CriterionError(f"not scores: {type(e).__name__}: {e!s:.200}; write them with scores.to_json()") from e


def _numbers(values: Any) -> Floats:
    found = np.array(values, np.float64)
    if found.ndim != 1:
        raise ValueError("a group's scores are no list of numbers")
    return found


@takes(graph=ChannelGraph, model=MODULE)
def score(
    graph: ChannelGraph,
    model: nn.Module,
    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION,
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    reduce: Reduction | None = None,
    normalize: Normalization | None = None,
    progress: bool = False,
    reuse: dict[Any, Any] | None = None,
) -> Scores:
    """Score every channel of a graph.

    The model runs in eval mode and is left as it was: weights, gradients, buffers, training and requires_grad flags,
    and torch's random state.

    Args:
        graph: from `fxprune.trace`.
        model: the traced model, or another checkpoint of the same architecture.
        criterion: a registered name, a criterion, or any callable `(ctx: Context) -> {tensor or group: values}`.
        data: an iterable of batches, whatever `loss` takes; a DataLoader is read anew, and never kept in memory, for
            criteria that look several times (see `fxprune.scoring.streaming`).
        loss: `loss(model, batch) -> scalar tensor`.
        seed: for criteria and losses that draw random numbers.
        reduce: "sum", "mean", "max", "l2" or "first" over a channel's elements (see `fxprune.scoring.saliency`); None:
            the criterion's `reduction`, else "sum".
        normalize: "mean", "max", "standardize" or "rank" within a group; "none": don't; None: the criterion's
            `normalization`, else "none".
        progress: show a bar.
        reuse: a dict that keeps what was computed (gradients, input moments, saliencies) from one call to the next: for
            other criteria, or other graphs, of the same weights, data, loss and seed.

    Raises:
        CriterionError: the criterion is unknown, changed a weight, or returned something of the wrong shape, of an
            unknown name, or not finite; or the loss is not finite.
        InputsError: the criterion (the default one, too) needs data or a loss that is missing; the model is not the
            graph's.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> graph = analyse(net, ((torch.ones(1, 2),), {}))
    >>> ones = score(graph, net, lambda ctx: {n: torch.ones_like(p) for n, p in ctx.parameters.items()})
    >>> ones.values["0.weight:0"].tolist()  # two weights, a bias and the reader's weight
    [4.0, 4.0]
    """
    call, name, package = resolve(criterion)
    reduce = _option("reduce", reduce, getattr(call, "reduction", None) or "sum", REDUCTIONS)
    normalize = _option("normalize", normalize, getattr(call, "normalization", None) or "none", NORMALIZATIONS)
    partial = bool(getattr(call, "partial", False))
    _check_needs(named(name, package), call, data, loss)
    with in_turn, at_rest(model), ranks.told():
        _check_model(graph, resharded(model), bool(getattr(call, "weights", True)))
        memo: dict[Any, Any] = {} if reuse is None else reuse
        apart = sharded(model) and not takes_shards(call)
        with entire(model) if apart else contextlib.nullcontext(model) as net:
            ctx = Context(graph, net, name, data, loss, seed, progress, package, memo)
            if apart:
                ctx.note(told_whole(ctx.parameters))
            returned = _called(call, ctx)
            with torch.no_grad():
                values, folded = summed(graph, ctx.who, returned, reduce, partial)
                blocks = block_scores(graph, returned, folded)
    values = {g: normalized(v, normalize) for g, v in values.items()}
    unscored = tuple(g.name for g in graph.groups if g.name not in values)
    top = max((float(v.max()) for v in values.values() if len(v)), default=0.0)
    filled = {g.name: values.get(g.name, np.full(len(g), top)) for g in graph.groups}
    additive = reduce == "sum" and normalize == "none" and not any(g.name in returned for g in graph.groups)
    return Scores(filled, name, unscored, blocks, additive, tuple(ctx.notes))


def _called(call: Criterion, ctx: Context) -> Any:
    """What the criterion returns, or returned before for the tensors of the graph."""
    key = ("returned", call if getattr(call, "__hash__", None) is not None else object())
    held, notes = ctx.memo.get(key, (None, ()))
    if isinstance(held, Mapping) and held and all(n in ctx.graph.shapes for n in held):
        ctx.notes.extend(notes)
        return held
    own = type(call).__module__.startswith("fxprune.criteria.")
    alone = own and not needs_of(call)  # nobody else's code runs, and no weight needs to be read for a comparison
    kept = unchanged(ctx.model, ctx.who, restore=not own, compare=not alone)
    with attributes_kept(ctx.model, always=False), kept, recomputing(ctx, call):
        tell(ctx, call)
        seed_torch(ctx.model, ctx.seed)
        try:
            ctx.memo[key] = call(ctx), ctx.notes
        except FxPruneError:
            raise
        except Exception as e:
            if out_of_memory(e):
                raise CriterionError(f"{ctx.who} ran out of memory on {ctx.device}: {e!s:.200}; {SMALLER}") from e
            if not ctx.package:
                raise
            raise CriterionError(f"{ctx.who} failed: {type(e).__name__}: {e}; report it to {ctx.package}") from e
    return ctx.memo[key][0]


def resolve(criterion: str | type[Any] | Criterion) -> tuple[Criterion, str, str]:
    """The callable, a name for it, and the package that it comes from ("" if it is fxprune's or the caller's own).

    The name is the registered one, a dataclass's repr, or a function's own name.

    Raises:
        CriterionError: the name is unknown, or it is nothing that can be called.
        PluginError: it cannot be imported or made.
    """
    if isinstance(criterion, str):
        return _call(registry.make("criteria", criterion)), criterion, registry.package("criteria", criterion)
    if isinstance(criterion, type):
        criterion = cast(Criterion, criterion())
    if not callable(criterion):
        raise CriterionError(
            f"criterion is a {type(criterion).__name__}; pass a registered name, an instance, or a callable "
            "(ctx) -> {name: values}"
        )
    call = _call(criterion)
    is_dataclass = hasattr(call, "__dataclass_fields__")
    name = repr(call) if is_dataclass else getattr(call, "__name__", type(call).__name__)
    return call, name, registry.package_of("criteria", type(criterion)) or _distribution(criterion)


def needs_of(criterion: str | type[Any] | Criterion) -> frozenset[str]:
    """What a criterion says that it needs.

    Raises:
        CriterionError, PluginError: as `resolve`.
    """
    return frozenset(getattr(resolve(criterion)[0], "needs", ()))


def takes_shards(criterion: str | type[Any] | Criterion) -> bool:
    """Whether a criterion says that parameters in shards will do.

    Raises:
        CriterionError, PluginError: as `resolve`.
    """
    return bool(getattr(resolve(criterion)[0], "sharded", False))


def _call(criterion: Any) -> Criterion:
    """A criterion, or what makes one of an importance of Torch-Pruning (imported only then)."""
    if not comes_from(criterion, "torch_pruning"):
        return cast(Criterion, criterion)
    return TorchPruningImportance(criterion)


def _distribution(criterion: Any) -> str:
    return "torch-pruning" if type(criterion).__module__.partition(".")[0] == "torch_pruning" else ""


def _option(what: str, asked: Any, default: Any, allowed: tuple[str, ...]) -> Any:
    chosen = default if asked is None else asked
    if chosen not in allowed:
        raise CriterionError(f"{what} is {chosen!r}; use one of {', '.join(map(repr, allowed))}")
    return chosen


def _check_needs(who: str, call: Criterion, data: Any, loss: Any) -> None:
    needs: frozenset[str] = getattr(call, "needs", frozenset())
    no_data, no_loss = "data" in needs and data is None, "loss" in needs and loss is None
    if no_data or no_loss:
        raise InputsError(f"{missing(who, no_data, no_loss)}; or choose one that looks at weights alone: {WEIGHTS}")


def _check_model(graph: ChannelGraph, model: nn.Module, values: bool) -> None:
    require_whole(model, shards=True)
    held = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for name, shape in graph.shapes.items():
        if name not in held or tuple(held[name].shape) != shape:
            has = f"has shape {tuple(held[name].shape)}" if name in held else "is missing"
            raise InputsError(
                f"the graph was traced from another model: {name} {has} in this {type(model).__name__}, the graph "
                f"has {shape}; trace this model"
            )
        if held[name].is_meta and values:
            raise InputsError(f"{name} is on the meta device and has no values to score; load the weights first")
