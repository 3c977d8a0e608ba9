"""The loss on what a few steps of a sampler end at, whose memory does not grow with the steps.

    z(θ) = sampler(x_T; θ)          the final latent, from noise, by a deterministic sampler of a few steps
    L(θ) = mean (z(θ) − t)²         t = z(θ_dense) + r,   r ~ N(0, 1), drawn once

A squared error to the dense model's own z would have no gradient at the dense weights.  With targets drawn around it,
as from a Gaussian, the gradient is −2 Jᵀ r / d, J = ∂z/∂θ: its square is in the mean the diagonal of Jᵀ J, which is
what taking a weight away does to the squared error of z in second order.  So all criteria that read gradients see how
far each weight moves the end of the trajectory.  Every step of the sampler is a checkpoint: its activations are made
again on the way back, and between steps only latents are kept.

Source: Zhang et al., EcoDiff, arXiv 2412.02852 (loss on the final latent, checkpoints over time); Martens, New Insights
and Perspectives on the Natural Gradient Method, JMLR 2020 (targets drawn from the model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxprune.adapters.denoising import CHUNK, Batch, Denoiser
from fxprune.adapters.noising import Noising, Predict
from fxprune.adapters.tensors import draw
from fxprune.errors import InputsError
from fxprune.graph.modules import evaluating
from fxprune.scoring.context import Loss

KEYS = ("start", "conditions", "target")


def trajectories(
    task: Denoiser, model: nn.Module, noising: Noising, steps: int, n: int, seed: int
) -> tuple[list[Batch], Loss]:
    """Batches (where trajectories start, under which conditions, and their targets), and the loss.

    Args:
        task: how the model is called.
        model: the dense model, which the targets are drawn around.
        noising: the process that is sampled.
        steps: of the sampler.
        n: trajectories in all.
        seed: for starts, conditions and targets.

    Raises:
        InputsError: the model removes no noise that is known here.
    """
    task.check()
    generator = torch.Generator().manual_seed(seed)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, Mapping) or any(k not in batch for k in KEYS):
            raise InputsError(f"a trajectory's batch holds {', '.join(KEYS)}; pass the data of trajectory_loss()")
        end = _sampled(task, net, noising, steps, batch)
        return nn.functional.mse_loss(end.float(), batch["target"].float())

    def made(size: int) -> Batch:
        conditions = (task.prompted or task.conditions)(size, generator)
        batch = {"start": draw(model, (size, *task.image), generator), "conditions": conditions}
        with torch.no_grad(), evaluating(model):
            end = _sampled(task, model, noising, steps, batch)
        return {**batch, "target": end + draw(model, tuple(end.shape), generator)}

    return [made(min(CHUNK, n - first)) for first in range(0, n, CHUNK)], loss


def _sampled(task: Denoiser, model: nn.Module, noising: Noising, steps: int, batch: Mapping[str, Any]) -> Tensor:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        return task.predict(model, x, t, batch["conditions"])

    return noising.sample(_again(predict) if torch.is_grad_enabled() else predict, batch["start"], steps, iter)


def _again(predict: Predict) -> Predict:
    """The same, which keeps nothing but its inputs for the way back."""

    def checkpointed(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = checkpoint(predict, x, t, use_reentrant=False)
        return out

    return checkpointed
