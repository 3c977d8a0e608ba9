"""Small diffusion models and real pipelines around them, shared by tests and the new processes they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

WORDS = ["a", "an", "the", "of", "photo", "painting", "drawing", "cat", "dog", "house", "tree", "mountain", "car", "red"]
UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
SD = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
SDXL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
    "cross_attention_dim": 64,
}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 16,
}
DIT = {"num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "num_layers": 2, "patch_size": 2}
PIXART = DIT | {"sample_size": 8, "out_channels": 8, "cross_attention_dim": 48, "caption_channels": 32}
SD3 = DIT | {
    "sample_size": 8,
    "joint_attention_dim": 64,
    "caption_projection_dim": 48,
    "pooled_projection_dim": 64,
    "out_channels": 4,
    "pos_embed_max_size": 8,
}
FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ddpm": lambda: diffusers.UNet2DModel(**UNET),
    "ddpm-classes": lambda: diffusers.UNet2DModel(**UNET, num_class_embeds=10),
    "sd1": lambda: diffusers.UNet2DConditionModel(**SD),
    "sd2": lambda: diffusers.UNet2DConditionModel(**SD, use_linear_projection=True),
    "sdxl": lambda: diffusers.UNet2DConditionModel(**SD | SDXL),
    "sd-inpaint": lambda: diffusers.UNet2DConditionModel(**SD | {"in_channels": 9}),
    "sd-classes": lambda: diffusers.UNet2DConditionModel(**SD, num_class_embeds=10),
    "ldm": lambda: diffusers.UNet2DModel(**UNET | {"sample_size": 8}),
    "vae": lambda: diffusers.AutoencoderKL(**VAE),
    "vq": lambda: diffusers.VQModel(**VAE | {"latent_channels": 3}, num_vq_embeddings=16),
    "tiny-vae": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(32, 32), decoder_block_out_channels=(32, 32), num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ),
    "dit": lambda: diffusers.DiTTransformer2DModel(
        **DIT, sample_size=8, out_channels=8, num_embeds_ada_norm=10, norm_type="ada_norm_zero"
    ),
    "pixart": lambda: diffusers.PixArtTransformer2DModel(**PIXART),
    "sd3": lambda: diffusers.SD3Transformer2DModel(**SD3),
    "flux": lambda: diffusers.FluxTransformer2DModel(**FLUX),
    "sana": lambda: diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=4, cross_attention_head_dim=12, cross_attention_dim=48, caption_channels=32,
        sample_size=8,
    ),
    "aura": lambda: diffusers.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=64, pos_embed_max_size=16,
    ),
}  # fmt: skip


def model(name: str) -> Any:
    """A model of the table with random weights: no zero-initialised layer or unit norm hides anything."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MODELS[name]()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.02 * torch.randn(p.shape))
    return net.eval()
