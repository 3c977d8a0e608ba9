"""The networks that the project is made for, at their real shapes, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

DDPM = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def random_weights(model: nn.Module) -> nn.Module:
    """Every parameter random, so that zero-initialised layers and unit norms hide nothing."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    return model.eval()


def ddpm_cifar10() -> nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return random_weights(UNet2DModel(**DDPM))


def digits() -> nn.Module:
    from fxprune.demo.digits import load_pipeline

    return load_pipeline().unet


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        torch.manual_seed(0)
        return random_weights(timm.create_model(name, pretrained=False, **options))

    return make


MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits": digits,
    "ddpm-cifar10-32": ddpm_cifar10,
    "resnet18": timm_model("resnet18"),
    "vit_tiny": timm_model("vit_tiny_patch16_224"),
}
