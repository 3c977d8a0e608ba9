"""The networks of the quality benchmark, all below 4 M parameters, so that half-precision weights take 8 MB at most.

Saved with `save_pretrained` in half precision, loaded in single; the weights are what matters, not their last bits.
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, DDPMScheduler, DiTTransformer2DModel, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

LATENT = 4  # channels of the autoencoder's latents, at half the image's side


class Classifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A small convolutional classifier; `features` are what the Fréchet distance and the manifolds are taken in."""

    @register_to_config
    def __init__(self, in_channels: int, classes: int, width: int = 32, stages: int = 3, features: int = 64) -> None:
        super().__init__()
        widths = [in_channels] + [width * 2**i for i in range(stages)]
        blocks = [_stage(a, b) for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], features))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(features, classes)

    def features(self, images: Tensor) -> Tensor:
        """(n, features), before the activation, so that they are near to normal."""
        found: Tensor = self.body(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.head(self.dropout(nn.functional.silu(self.features(images))))
        return logits


def _stage(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def schedule(clip: bool = True) -> DDPMScheduler:
    """The cosine schedule, which keeps more of a small image's signal than a linear one; latents are not clipped."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=clip)


def ddpm() -> UNet2DModel:
    """Pixel diffusion, unconditional: three resolutions, attention of 16 channels a head on the lowest (8x8)."""
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(48, 96, 96),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        dropout=0.1,
    )


def vae() -> AutoencoderKL:
    """Images 3x32x32 to latents 4x16x16."""
    return AutoencoderKL(
        sample_size=32,
        block_out_channels=(48, 96),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT,
        norm_num_groups=8,
    )


def ldm() -> UNet2DModel:
    """Diffusion of the latents, unconditional: two resolutions, attention on the lower one (8x8)."""
    return UNet2DModel(
        sample_size=16,
        in_channels=LATENT,
        out_channels=LATENT,
        block_out_channels=(80, 112),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        dropout=0.1,
    )


def dit(classes: int) -> DiTTransformer2DModel:
    """A diffusion transformer on pixels, patches of 2x2, conditioned on the class; adaLN-Zero initialisation.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers, ICCV 2023.
    """
    net = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=3,
        out_channels=3,
        num_layers=10,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=classes,
        dropout=0.1,
    )
    outputs = [net.proj_out_1, net.proj_out_2, *(block.norm1.linear for block in net.transformer_blocks)]
    for layer in outputs:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


CLASSES: dict[str, type[ModelMixin]] = {
    "ddpm": UNet2DModel,
    "vae": AutoencoderKL,
    "ldm": UNet2DModel,
    "dit": DiTTransformer2DModel,
    "classifier": Classifier,
}


def save(net: ModelMixin, folder: Path) -> None:
    """Write config and half-precision weights."""
    deepcopy(net).half().save_pretrained(folder)


def load(kind: str, folder: Path | str) -> Any:
    """Load one of `CLASSES` in single precision, for evaluation."""
    return CLASSES[kind].from_pretrained(folder, torch_dtype=torch.float32).eval()
