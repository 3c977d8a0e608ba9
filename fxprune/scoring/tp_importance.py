"""Importances of Torch-Pruning (https://github.com/VainF/Torch-Pruning) as criteria."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.graph.groups import Group
from fxprune.scoring.context import Context
from fxprune.scoring.preservation import attributes_kept
from fxprune.scoring.tp_groups import holders, present

PACKAGE = "torch_pruning"


@dataclass(frozen=True, repr=False)
class TorchPruningImportance:
    """An importance of Torch-Pruning, a callable from its groups to one score a channel, as a criterion.

    Needs what the importance does: data and a loss for Taylor, Hessian (one backward pass a sample) and OBDC, data for
    Activation.  Gradients are those of the mean loss over all batches, and lie in `.grad` while the importance runs.
    An importance of another kind finds them there if data and a loss are given; it may ask for them as criteria do, by
    an attribute `needs`.

    A channel of several positions (a head) has the mean of its positions' scores, as in Torch-Pruning.  Shape: one
    score a channel of each group that has a layer which the importance looks at; the others come last.
    Errors: CriterionError where it fails or returns NaN.
    Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """

    importance: Any
    partial: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """What it must be given; see `fxprune.score`."""
        if (declared := getattr(self.importance, "needs", None)) is not None:
            return frozenset(declared)
        if hasattr(self.importance, "compute_importance"):
            return frozenset({"data", "forward"})
        return frozenset({"data", "loss"} if _kind(self.importance) else ())

    def __repr__(self) -> str:
        plain = {k: v for k, v in vars(self.importance).items() if v is None or isinstance(v, (bool, int, float, str))}
        return f"{type(self.importance).__name__}({', '.join(f'{k}={v!r}' for k, v in plain.items())})"

    def __call__(self, ctx: Context) -> dict[str, Any]:
        """Group name -> one score a channel."""
        held = holders(ctx.model)
        given = [(g, *present(ctx.model, held, g)) for g in ctx.graph.groups]
        _tell(ctx, list(dict.fromkeys(name for *_, odd in given for name in odd)))
        with attributes_kept(ctx.model):
            _prepare(self.importance, ctx)
            found = [(g, self.importance(made), width) for g, made, width, _ in given if len(made)]
        return {g.name: self._by_channel(ctx, g, s, width) for g, s, width in found if s is not None}

    def _by_channel(self, ctx: Context, group: Group, scores: Any, width: int) -> Any:
        """Scores of positions as scores of channels, or as they are where the number is wrong (`score` says so).

        The reductions of Torch-Pruning return as many as the first layer that they count has positions; only the
        root's mean something.
        """
        if isinstance(scores, Tensor) and hasattr(self.importance, "group_reduction"):
            scores = scores[: len(group) * width]
        if not isinstance(scores, Tensor) or scores.numel() != len(group) * width:
            return scores
        if bool(torch.isnan(scores).any()):
            raise CriterionError(
                f"{ctx.who}: the scores of group {group.name} hold NaN; normalizers divide by a group's mean or "
                "sum, which is zero here, or the weights, data or loss hold NaN: try normalizer=None"
            )
        return scores.detach().double().view(len(group), width).mean(1)


def _kind(importance: Any) -> str:
    """How an importance wants its gradients: "" for not at all."""
    from torch_pruning.pruner.importance import GroupTaylorImportance

    if hasattr(importance, "accumulate_grad"):
        return "each sample's"
    if hasattr(importance, "_prepare_model"):
        return "watched"
    return "mean" if isinstance(importance, GroupTaylorImportance) else ""


def _prepare(importance: Any, ctx: Context) -> None:
    """Run what the importance wants to see."""
    kind = _kind(importance)
    if hasattr(importance, "compute_importance"):
        with importance.compute_importance(ctx.model):
            ctx.observe(lambda call: None, "activations")
    elif kind == "each sample's":
        importance.zero_grad()
        for number, sample in enumerate(ctx.samples("gradients")):
            _set_gradients(ctx, ctx.differentiate(ctx.loss(sample, number)))
            importance.accumulate_grad(ctx.model)
    elif kind == "watched":
        importance._clear_buffer()
        importance._prepare_model(ctx.model, _Layers(ctx))
        for batch in ctx.track("gradients"):
            _set_gradients(ctx, ctx.differentiate(ctx.loss(batch)))
            importance.step()
    elif kind == "mean" or (_foreign(importance) and ctx.data is not None and ctx.loss_function is not None):
        _set_gradients(ctx, ctx.gradients())


def _foreign(importance: Any) -> bool:
    """Whether somebody else wrote it, so that what it reads is unknown."""
    return type(importance).__module__.partition(".")[0] != PACKAGE


def _set_gradients(ctx: Context, gradients: Mapping[str, Tensor]) -> None:
    for name, p in ctx.parameters.items():
        p.grad = gradients[name].to(p.dtype, copy=True)


class _Layers:
    """As much of a pruner of Torch-Pruning as OBDC asks for: one group, of the outputs of all layers that run."""

    ignored_layers, root_module_types = (), ()

    def __init__(self, ctx: Context) -> None:
        self.DG = self
        names = {n.rpartition(".")[0] for n in ctx.graph.shapes}
        self.layers = [m for n, m in ctx.model.named_modules() if n in names]

    def get_all_groups(self, **_: Any) -> Iterator[list[Any]]:
        from torch_pruning import ops
        from torch_pruning.dependency import Dependency
        from torch_pruning.dependency.node import Node
        from torch_pruning.pruner import function

        found = [(m, function.PrunerBox.get(ops.module2type(m))) for m in self.layers]
        nodes = [(Node(m, None), pruner.prune_out_channels) for m, pruner in found if pruner is not None]
        yield [(Dependency(handler, handler, node, node), []) for node, handler in nodes]

    def _downstream_node_as_root_if_attention(self, group: Any) -> Any:
        return group


def _tell(ctx: Context, odd: list[str]) -> None:
    if odd:
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        warnings.warn(
            f"{ctx.who}: {', '.join(odd[:5])}{more} (raw parameters, buffers, embeddings) are no layers that "
            "Torch-Pruning's importances look at, and do not count in the scores",
            stacklevel=2,
        )
