"""Pixel diffusion: diffusers' UNet2DModel, unconditional or with classes, alone or in its pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.adapters.denoising import Denoiser
from fxprune.adapters.diffusers_base import DiffusersAdapter, backbone, side_of
from fxprune.adapters.noising import VariancePreserving
from fxprune.adapters.tensors import draw, draw_integers

# DDPM's own schedule, which diffusers' DDPMScheduler has by default.
SCHEDULE = {"num_train_timesteps": 1000, "clip_sample": True}


class DDPMAdapter(DiffusersAdapter):
    """`UNet2DModel`, `DDPMPipeline`, `DDIMPipeline` and other pipelines around a `UNet2DModel`.

    Without data the model draws its own calibration images with ten DDIM steps; the loss is that of noise prediction.
    A score-SDE model (Fourier time embedding) is traced and pruned, but its loss must be given.

    Source: Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020.
    """

    def recognises(self, given: object) -> bool:
        """A UNet2DModel, or a diffusers pipeline around one."""
        net = backbone(given)
        if net is None:
            return False
        from diffusers import UNet2DModel

        return isinstance(net, UNet2DModel)

    def task(self, model: nn.Module) -> Denoiser:
        """Images of the config's size and channels, and class labels if the model takes them."""
        config: Any = model.config
        side = side_of(config, 4 * 2 ** (len(config.block_out_channels) - 1))
        fourier = config.time_embedding_type == "fourier"
        return Denoiser(
            image=(config.in_channels, *side),
            noising=VariancePreserving(SCHEDULE),
            time=10.0 if fourier else min(10, (config.num_train_timesteps or 1000) - 1),
            conditions=lambda n, generator: _classes(model, n, generator),
            no_loss="a score-SDE model (time_embedding_type='fourier') has another loss" if fourier else "",
        )


def _classes(model: nn.Module, n: int, generator: torch.Generator) -> dict[str, Any]:
    """Random class labels, in the form that `class_embed_type` asks for."""
    config: Any = model.config
    if config.class_embed_type is None and config.num_class_embeds is None:
        return {}
    if config.class_embed_type == "identity":
        width = model.time_embedding.linear_2.out_features  # type: ignore[union-attr]
        return {"class_labels": draw(model, (n, int(width)), generator)}  # type: ignore[arg-type]
    return {"class_labels": draw_integers(model, (n,), config.num_class_embeds or 1000, generator)}
