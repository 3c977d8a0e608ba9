"""The methods that are compared: what goes, and when.  Every one gets the same number of training steps in all.

one-shot      cut at step 0, then train
iterative     hard cuts in rounds while training
soft          a mask along the gradient flow while training
torch-pruning its own pruner, as its README shows, at the channel ratio whose cost comes nearest; then train.
              "diff-pruning": gradients as Diff-Pruning's script sums them, Torch-Pruning's present Taylor importance
scratch       the architecture that one-shot magnitude leaves, with fresh weights
default       `fxprune.prune(pipeline, ratio=..., steps=..., data=...)` with nothing else given, or with a scheduler
corrected     the same with `Obs(select="gradflow")`: the default's channels go, and what stays is corrected first;
              "importance": times are drawn where errors are large, `timesteps=fxprune.Timesteps(importance=True)`

One-shot methods rank channels by their scores, as published; those "per cost", and all that prune while training, by
what is lost per unit of the cost, which is this library's default (`scope="knapsack"`).  "snr" scores channels by the
error of the clean sample, up to a limit, instead of that of the noise: `timesteps=fxprune.Timesteps("snr", gamma=0.2)`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from measure import size
from torch import Tensor, nn

import fxprune
from fxprune import Scheduler
from fxprune.criteria.diff_pruning import DiffPruning
from fxprune.criteria.gradflow import GradFlow
from fxprune.criteria.gradflow_preserving import GradFlowPreserving
from fxprune.criteria.obs import Obs
from fxprune.schedulers.iterative import Iterative
from fxprune.schedulers.soft import Soft

TIMES = 1000  # of the noise schedule
Loss = Callable[[nn.Module, Any], Tensor]
Cut = Callable[[nn.Module, float, str, list[Any], Loss, int], nn.Module]


@dataclass(frozen=True)
class Method:
    """A scheduler (None: cut first) with a criterion and how its scores are ranked, or a function that cuts.

    `gamma` weighs the times that a criterion sees by min(SNR, γ) / SNR; what the network is trained for stays.
    With `whole`, it is one call of `fxprune.prune` for all, which trains too, and is given no more than what is here.
    """

    criterion: Any = None
    scheduler: Scheduler | None = None
    cut: Cut | None = None
    scope: str | None = None
    gamma: float | None = None
    whole: bool = False
    timesteps: Any = None


def _example(net: nn.Module, data: list[Any]) -> dict[str, Any]:
    image = data[0][0][:1]
    return {"sample": image, "timestep": torch.tensor([10], device=image.device)} if _denoises(net) else {"x": image}


def _denoises(net: nn.Module) -> bool:
    return hasattr(net, "conv_out")


def scratch(net: nn.Module, ratio: float, of: str, data: list[Any], loss: Loss, seed: int) -> nn.Module:
    """The small architecture with the initialisation of its own layers."""
    small = fxprune.prune(net, "magnitude", ratio, of=of, progress=False, verify=False)
    torch.manual_seed(seed)
    for module in small.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return small


def torch_pruning(importance: str) -> Cut:
    """Torch-Pruning's BasePruner; its ratio is of channels, so the one that meets the cost is searched."""

    def cut(net: nn.Module, ratio: float, of: str, data: list[Any], loss: Loss, seed: int) -> nn.Module:
        gradients(importance, net, data, loss, seed)
        low, high, found = 0.0, 0.95, []
        for _ in range(7):
            middle = (low + high) / 2
            small = _torch_pruned(net, importance, middle, data)
            left = size(small, of, _example(small, data)) / size(net, of, _example(net, data))
            found.append((abs(1 - left - ratio), len(found), small))
            low, high = (middle, high) if left > 1 - ratio else (low, middle)
        return min(found)[2]

    return cut


def gradients(importance: str, net: nn.Module, data: list[Any], loss: Any, seed: int) -> None:
    """What an importance of Torch-Pruning reads of `p.grad`.

    "diff-pruning" is as the script of Diff-Pruning has it: of one batch and one noise, summed from time 0 on, until the
    loss is below 5 % of the largest so far.
    """
    if importance == "taylor":
        sum(loss(net, batch) for batch in data).backward()  # type: ignore[union-attr]
    if importance != "diff-pruning":
        return
    largest = 0.0
    for time in range(TIMES):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            value = loss(net, data[0], time=time)
        value.backward()
        largest = max(largest, value.item())
        if value.item() < 0.05 * largest:
            break


def _torch_pruned(net: nn.Module, importance: str, ratio: float, data: list[Any]) -> nn.Module:
    import torch_pruning as tp
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import Downsample2D, Upsample2D

    small = deepcopy(net).train()
    for p, dense in zip(small.parameters(), net.parameters(), strict=True):
        p.grad = None if dense.grad is None else dense.grad.clone()
    magnitude = importance == "magnitude"
    scores = tp.importance.GroupMagnitudeImportance() if magnitude else tp.importance.GroupTaylorImportance()
    heads = {q: m.heads for m in small.modules() if isinstance(m, Attention) for q in (m.to_q, m.to_k, m.to_v)}
    last = small.conv_out if _denoises(small) else small.fc
    pruner = tp.pruner.BasePruner(
        small, _example(small, data), importance=scores, pruning_ratio=ratio, ignored_layers=[last], num_heads=heads
    )
    pruner.step()
    small.zero_grad()
    for m in small.modules():
        if isinstance(m, (Upsample2D, Downsample2D)):
            m.channels, m.out_channels = m.conv.in_channels, m.conv.out_channels
    return small


# "gradflow" in the rows that were measured is the published criterion, with its sign.
LITERAL = GradFlow(form="literal")
METHODS: dict[str, Method] = {
    "default": Method(whole=True),
    "default, soft": Method(scheduler=Soft(), whole=True),
    "default, iterative": Method(scheduler=Iterative(), whole=True),
    "corrected": Method(Obs(select="gradflow"), whole=True),
    "corrected, importance": Method(Obs(select="gradflow"), whole=True, timesteps=fxprune.Timesteps(importance=True)),
    "random": Method("random"),
    "magnitude": Method("magnitude", scope="global"),
    "taylor": Method("taylor", scope="global"),
    "diff-pruning": Method(DiffPruning(), scope="global"),
    "gradflow": Method(LITERAL, scope="global"),
    "gradflow preserving": Method(GradFlowPreserving(), scope="global"),
    "taylor per cost": Method("taylor"),
    "taylor per cost snr": Method("taylor", gamma=0.2),
    "diff-pruning per cost": Method(DiffPruning()),
    "gradflow weighed per cost": Method(GradFlow()),
    "gradflow preserving per cost": Method(GradFlowPreserving()),
    "torch-pruning magnitude": Method(cut=torch_pruning("magnitude")),
    "torch-pruning taylor": Method(cut=torch_pruning("taylor")),
    "torch-pruning diff-pruning": Method(cut=torch_pruning("diff-pruning")),
    "scratch": Method(cut=scratch),
    "iterative magnitude": Method("magnitude", Iterative()),
    "iterative taylor": Method("taylor", Iterative()),
    "iterative taylor snr": Method("taylor", Iterative(), gamma=0.2),
    "iterative gradflow": Method(LITERAL, Iterative()),
    "iterative gradflow preserving": Method(GradFlowPreserving(), Iterative()),
    "iterative gradflow weighed": Method(GradFlow(), Iterative()),
    "soft gradflow": Method(LITERAL, Soft()),
    "soft gradflow weighed": Method(GradFlow(), Soft()),
    "soft gradflow weighed, coarse": Method(GradFlow(), Soft(coarse=True)),
    "soft gradflow preserving": Method(GradFlowPreserving(), Soft()),
    "soft taylor": Method("taylor", Soft()),
    "soft gradflow preserving snr": Method(GradFlowPreserving(), Soft(), gamma=0.2),
    "soft taylor snr": Method("taylor", Soft(), gamma=0.2),
    "soft magnitude": Method("magnitude", Soft()),
}
