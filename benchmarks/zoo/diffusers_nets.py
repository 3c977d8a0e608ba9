"""diffusers: UNets, transformers, controlnets, adapters and autoencoders, each from a small config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers as D
import torch
from case import Case, Make
from diffusers.models import DualTransformer2DModel
from torch import Tensor, nn

randn = torch.randn


def steps(b: int) -> Tensor:
    return torch.full((b,), 20)


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


def latent(c: int, side: int, **more: Any) -> Make:
    """A noisy image and its time, for UNets."""
    return lambda b: {"sample": randn(b, c, side, side), "timestep": steps(b)} | {k: v(b) for k, v in more.items()}


def text(n: int, c: int) -> Make:
    return lambda b: randn(b, n, c)


def hidden(*shape: int, **more: Make) -> Make:
    """A noisy latent and its time, for transformers."""
    return lambda b: {"hidden_states": randn(b, *shape), "timestep": steps(b)} | {k: v(b) for k, v in more.items()}


def moment(b: int) -> Tensor:
    return torch.linspace(0.3, 0.6, b)


def picture(side: int = 32, c: int = 3) -> Make:
    return lambda b: {"sample": randn(b, c, side, side)}


def video(frames: int = 5, side: int = 32, c: int = 3) -> Make:
    return lambda b: {"sample": randn(b, c, frames, side, side)}


def sound(n: int = 64, c: int = 1) -> Make:
    return lambda b: {"sample": randn(b, c, n)}


Row = tuple[str, str, dict[str, Any], Make]

UNET = {"sample_size": 16, "layers_per_block": 1, "norm_num_groups": 8}
SD = UNET | {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 96),
    "cross_attention_dim": 40,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
SIMPLE = UNET | {
    "in_channels": 4,
    "out_channels": 8,
    "block_out_channels": (32, 64),
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
XL = SD | {
    "block_out_channels": (32, 64, 96),
    "attention_head_dim": (2, 4, 6),
    "transformer_layers_per_block": (1, 1, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 128,
}


def conditions(b: int) -> dict[str, Tensor]:
    return {"text_embeds": randn(b, 32), "time_ids": torch.randint(0, 64, (b, 6)).float()}


def control(side: int = 32, c: int = 3) -> Make:
    return lambda b: randn(b, c, side, side)


TALK = text(9, 40)
CONTROL = {
    "in_channels": 4,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "cross_attention_dim": 40,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (16, 32),
}
UNETS: list[Row] = [
    (
        "unet2d-ddpm",
        "UNet2DModel",
        UNET
        | {
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        latent(3, 16),
    ),
    (
        "unet2d-celeba",
        "UNet2DModel",
        UNET
        | {
            "block_out_channels": (32, 32, 64, 64),
            "attention_head_dim": 8,
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D",) * 2 + ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 2,
        },
        latent(3, 16),
    ),
    (
        "unet2d-ldm",
        "UNet2DModel",
        UNET
        | {
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (32, 64, 96),
            "attention_head_dim": 16,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        latent(4, 16),
    ),
    (
        "unet2d-class",
        "UNet2DModel",
        UNET
        | {
            "block_out_channels": (32, 64),
            "attention_head_dim": 8,
            "num_class_embeds": 7,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        latent(3, 16, class_labels=lambda b: torch.arange(b)),
    ),
    (
        "unet2d-ncsnpp",
        "UNet2DModel",
        UNET
        | {
            "block_out_channels": (32, 64, 64),
            "time_embedding_type": "fourier",
            "norm_eps": 1e-6,
            "mid_block_scale_factor": 1.414,
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
            "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
            "attention_head_dim": 8,
            "norm_num_groups": None,
        },
        latent(3, 16),
    ),
    (
        "unet2d-resnet-blocks",
        "UNet2DModel",
        UNET
        | {
            "block_out_channels": (32, 64),
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": 8,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        },
        latent(3, 16),
    ),
    (
        "unet2d-no-attention",
        "UNet2DModel",
        UNET
        | {
            "block_out_channels": (32, 64, 96),
            "add_attention": False,
            "down_block_types": ("DownBlock2D",) * 3,
            "up_block_types": ("UpBlock2D",) * 3,
        },
        latent(3, 16),
    ),
    ("unet-sd", "UNet2DConditionModel", SD, latent(4, 16, encoder_hidden_states=TALK)),
    (
        "unet-sd2",
        "UNet2DConditionModel",
        SD | {"attention_head_dim": (2, 4, 6), "use_linear_projection": True},
        latent(4, 16, encoder_hidden_states=TALK),
    ),
    ("unet-sdxl", "UNet2DConditionModel", XL, latent(4, 16, encoder_hidden_states=TALK, added_cond_kwargs=conditions)),
    (
        "unet-ssd",
        "UNet2DConditionModel",
        XL
        | {
            "transformer_layers_per_block": [1, [1], [2]],
            "mid_block_type": None,
            "reverse_transformer_layers_per_block": [[1, 1], [1, 1], 1],
        },
        latent(4, 16, encoder_hidden_states=TALK, added_cond_kwargs=conditions),
    ),
    ("unet-inpaint", "UNet2DConditionModel", SD | {"in_channels": 9}, latent(9, 16, encoder_hidden_states=TALK)),
    (
        "unet-upscaler",
        "UNet2DConditionModel",
        SD | {"in_channels": 7, "num_class_embeds": 50, "only_cross_attention": (True, True, False)},
        latent(7, 16, encoder_hidden_states=TALK, class_labels=lambda b: torch.arange(b)),
    ),
    (
        "unet-kandinsky",
        "UNet2DConditionModel",
        SIMPLE | {"addition_embed_type": "image", "encoder_hid_dim": 24, "encoder_hid_dim_type": "image_proj"},
        latent(4, 16, encoder_hidden_states=lambda b: None, added_cond_kwargs=lambda b: {"image_embeds": randn(b, 24)}),
    ),
    (
        "unet-kandinsky-text",
        "UNet2DConditionModel",
        SIMPLE
        | {"addition_embed_type": "text_image", "encoder_hid_dim": 24, "encoder_hid_dim_type": "text_image_proj"},
        latent(
            4,
            16,
            encoder_hidden_states=text(5, 24),
            added_cond_kwargs=lambda b: {"image_embeds": randn(b, 32), "text_embeds": randn(b, 32)},
        ),
    ),
    (
        "unet-kandinsky-controlnet",
        "UNet2DConditionModel",
        SIMPLE
        | {
            "in_channels": 8,
            "addition_embed_type": "image_hint",
            "encoder_hid_dim": 24,
            "encoder_hid_dim_type": "image_proj",
        },
        latent(
            4,
            16,
            encoder_hidden_states=lambda b: None,
            added_cond_kwargs=lambda b: {"image_embeds": randn(b, 24), "hint": randn(b, 3, 128, 128)},
        ),
    ),
    (
        "unet-if",
        "UNet2DConditionModel",
        SIMPLE
        | {
            "in_channels": 3,
            "out_channels": 6,
            "only_cross_attention": True,
            "encoder_hid_dim": 24,
            "act_fn": "gelu",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
            "cross_attention_norm": "group_norm",
            "time_embedding_act_fn": "gelu",
            "class_embed_type": "timestep",
            "mid_block_scale_factor": 1.414,
        },
        latent(3, 16, encoder_hidden_states=text(5, 24), class_labels=lambda b: steps(b)),
    ),
    (
        "unet-if-layer-norm",
        "UNet2DConditionModel",
        SIMPLE
        | {
            "in_channels": 3,
            "out_channels": 6,
            "encoder_hid_dim": 24,
            "act_fn": "gelu",
            "cross_attention_norm": "layer_norm",
            "cross_attention_dim": 64,
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
        },
        latent(3, 16, encoder_hidden_states=text(5, 24)),
    ),
    (
        "unet-unclip",
        "UNet2DConditionModel",
        SIMPLE | {"class_embed_type": "identity", "only_cross_attention": False},
        latent(4, 16, encoder_hidden_states=text(5, 32), class_labels=lambda b: randn(b, 128)),
    ),
    (
        "unet-unclip-projection",
        "UNet2DConditionModel",
        SD | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 24},
        latent(4, 16, encoder_hidden_states=TALK, class_labels=lambda b: randn(b, 24)),
    ),
    (
        "unet-concat-class",
        "UNet2DConditionModel",
        SD
        | {
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": 24,
            "class_embeddings_concat": True,
        },
        latent(4, 16, encoder_hidden_states=TALK, class_labels=lambda b: randn(b, 24)),
    ),
    (
        "unet-gated-text",
        "UNet2DConditionModel",
        SD
        | {"attention_type": "default", "upcast_attention": True, "dual_cross_attention": False, "conv_in_kernel": 5},
        latent(4, 16, encoder_hidden_states=TALK),
    ),
    (
        "unet-lcm",
        "UNet2DConditionModel",
        SD | {"time_cond_proj_dim": 24},
        latent(4, 16, encoder_hidden_states=TALK, timestep_cond=lambda b: randn(b, 24)),
    ),
    (
        "unet3d",
        "UNet3DConditionModel",
        UNET
        | {
            "block_out_channels": (32, 64),
            "cross_attention_dim": 40,
            "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        lambda b: {"sample": randn(b, 4, 3, 16, 16), "timestep": steps(b), "encoder_hidden_states": TALK(b)},
    ),
    (
        "unet-svd",
        "UNetSpatioTemporalConditionModel",
        {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "cross_attention_dim": 40,
            "num_attention_heads": 4,
            "layers_per_block": 1,
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 48,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        },
        lambda b: {
            "sample": randn(b, 2, 8, 16, 16),
            "timestep": steps(b),
            "encoder_hidden_states": randn(b, 1, 40),
            "added_time_ids": randn(b, 3),
        },
    ),
    (
        "unet-motion",
        "UNetMotionModel",
        UNET
        | {
            "block_out_channels": (32, 64),
            "cross_attention_dim": 40,
            "num_attention_heads": 4,
            "motion_num_attention_heads": 4,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        },
        lambda b: {
            "sample": randn(b, 4, 3, 16, 16),
            "timestep": steps(b),
            "encoder_hidden_states": randn(b * 3, 9, 40),
        },
    ),
    (
        "unet-i2vgen",
        "I2VGenXLUNet",
        {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "cross_attention_dim": 40,
            "attention_head_dim": 16,
            "num_attention_heads": None,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        lambda b: {
            "sample": randn(b, 4, 3, 16, 16),
            "timestep": steps(b),
            "fps": torch.full((b,), 8),
            "image_latents": randn(b, 4, 3, 16, 16),
            "image_embeddings": randn(b, 40),
            "encoder_hidden_states": TALK(b),
        },
    ),
    (
        "unet1d-value",
        "UNet1DModel",
        {
            "block_out_channels": (16, 32, 64, 128),
            "in_channels": 6,
            "out_channels": 6,
            "time_embedding_type": "positional",
            "use_timestep_embedding": True,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "out_block_type": "OutConv1DBlock",
            "mid_block_type": "MidResTemporalBlock1D",
            "down_block_types": ("DownResnetBlock1D",) * 4,
            "up_block_types": ("UpResnetBlock1D",) * 3,
            "act_fn": "swish",
        },
        lambda b: {"sample": randn(b, 6, 16), "timestep": steps(b)},
    ),
    (
        "unet1d-audio",
        "UNet1DModel",
        {
            "sample_size": 64,
            "block_out_channels": (16, 32, 64),
            "extra_in_channels": 32,
            "time_embedding_type": "fourier",
            "in_channels": 2,
            "out_channels": 2,
            "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
            "up_block_types": ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
            "mid_block_type": "UNetMidBlock1D",
            "flip_sin_to_cos": True,
            "use_timestep_embedding": False,
        },
        lambda b: {"sample": randn(b, 2, 64), "timestep": steps(b)},
    ),
    (
        "unet-kandinsky3",
        "Kandinsky3UNet",
        {
            "in_channels": 4,
            "time_embedding_dim": 64,
            "groups": 8,
            "attention_head_dim": 16,
            "layers_per_block": 2,
            "block_out_channels": (32, 64),
            "cross_attention_dim": 48,
            "encoder_hid_dim": 40,
        },
        lambda b: {
            "sample": randn(b, 4, 16, 16),
            "timestep": steps(b),
            "encoder_hidden_states": TALK(b),
            "encoder_attention_mask": ones(b, 9),
        },
    ),
    (
        "unet-cascade-prior",
        "StableCascadeUNet",
        {
            "in_channels": 4,
            "out_channels": 4,
            "conditioning_dim": 64,
            "block_out_channels": (32, 64),
            "timestep_ratio_embedding_dim": 16,
            "num_attention_heads": (2, 4),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "down_blocks_repeat_mappers": (1, 1),
            "up_blocks_repeat_mappers": (1, 1),
            "clip_text_in_channels": 24,
            "clip_text_pooled_in_channels": 24,
            "clip_image_in_channels": 20,
            "switch_level": (False,),
        },
        lambda b: {
            "sample": randn(b, 4, 8, 8),
            "timestep_ratio": moment(b),
            "clip_text_pooled": randn(b, 1, 24),
            "clip_text": randn(b, 5, 24),
            "clip_img": randn(b, 1, 20),
        },
    ),
    (
        "unet-cascade-decoder",
        "StableCascadeUNet",
        {
            "in_channels": 4,
            "out_channels": 4,
            "conditioning_dim": 64,
            "block_out_channels": (32, 64, 96),
            "patch_size": 2,
            "num_attention_heads": (0, 2, 4),
            "down_num_layers_per_block": (1, 1, 1),
            "up_num_layers_per_block": (1, 1, 1),
            "down_blocks_repeat_mappers": (1, 1, 1),
            "up_blocks_repeat_mappers": (2, 1, 1),
            "clip_text_pooled_in_channels": 24,
            "timestep_ratio_embedding_dim": 16,
            "effnet_in_channels": 16,
            "pixel_mapper_in_channels": 3,
            "self_attn": True,
            "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock"),)
            + (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
            "timestep_conditioning_type": ("sca",),
            "dropout": (0, 0, 0.1),
        },
        lambda b: {
            "sample": randn(b, 4, 16, 16),
            "timestep_ratio": moment(b),
            "clip_text_pooled": randn(b, 1, 24),
            "effnet": randn(b, 16, 4, 4),
        },
    ),
    (
        "uvit",
        "UVit2DModel",
        {
            "hidden_size": 64,
            "cond_embed_dim": 32,
            "micro_cond_encode_dim": 16,
            "micro_cond_embed_dim": 96,
            "encoder_hidden_size": 40,
            "vocab_size": 60,
            "codebook_size": 48,
            "in_channels": 32,
            "block_out_channels": 64,
            "num_res_blocks": 1,
            "downsample": True,
            "upsample": True,
            "block_num_heads": 4,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "sample_size": 8,
        },
        lambda b: {
            "input_ids": torch.randint(0, 48, (b, 8, 8)),
            "encoder_hidden_states": TALK(b),
            "pooled_text_emb": randn(b, 32),
            "micro_conds": randn(b, 6),
        },
    ),
    (
        "unet-dreamlite",
        "DreamLiteUNetModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (32, 64, 96),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 40,
            "attention_head_dim": 8,
        },
        latent(4, 16, encoder_hidden_states=TALK, added_cond_kwargs=conditions),
    ),
    (
        "unet-controlnet-xs",
        "UNetControlNetXSModel",
        {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "cross_attention_dim": 40,
            "num_attention_heads": 4,
            "norm_num_groups": 8,
            "upcast_attention": False,
            "ctrl_block_out_channels": (16, 32),
            "ctrl_num_attention_heads": 4,
            "ctrl_max_norm_num_groups": 4,
            "ctrl_conditioning_embedding_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        latent(4, 16, encoder_hidden_states=TALK, controlnet_cond=control(32)),
    ),
    ("controlnet", "ControlNetModel", CONTROL, latent(4, 16, encoder_hidden_states=TALK, controlnet_cond=control(32))),
    (
        "controlnet-xl",
        "ControlNetModel",
        CONTROL
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 128,
            "use_linear_projection": True,
            "attention_head_dim": (2, 4, 6),
            "transformer_layers_per_block": (1, 2, 1),
        },
        latent(4, 16, encoder_hidden_states=TALK, controlnet_cond=control(32), added_cond_kwargs=conditions),
    ),
    (
        "controlnet-union",
        "ControlNetUnionModel",
        CONTROL
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 128,
            "num_trans_channel": 32,
            "num_proj_channel": 32,
            "num_trans_head": 4,
            "use_linear_projection": True,
        },
        latent(
            4,
            16,
            encoder_hidden_states=TALK,
            controlnet_cond=lambda b: [randn(b, 3, 32, 32)],
            control_type=lambda b: torch.eye(6)[:1].repeat(b, 1),
            control_type_idx=lambda b: [0],
            added_cond_kwargs=conditions,
        ),
    ),
    (
        "controlnet-sparse",
        "SparseControlNetModel",
        {
            "in_channels": 4,
            "conditioning_channels": 4,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 40,
            "norm_num_groups": 8,
            "num_attention_heads": 4,
            "motion_num_attention_heads": 4,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "use_simplified_condition_embedding": True,
        },
        lambda b: {
            "sample": randn(b, 4, 3, 16, 16),
            "timestep": steps(b),
            "encoder_hidden_states": randn(b * 3, 9, 40),
            "controlnet_cond": randn(b, 4, 3, 16, 16),
            "conditioning_mask": ones(b, 1, 3, 16, 16),
        },
    ),
    (
        "t2i-adapter",
        "T2IAdapter",
        {"channels": [32, 64, 96, 96], "num_res_blocks": 1, "downscale_factor": 8},
        lambda b: (randn(b, 3, 64, 64),),
    ),
    (
        "t2i-adapter-xl",
        "T2IAdapter",
        {"channels": [32, 64, 96, 96], "downscale_factor": 16, "adapter_type": "full_adapter_xl"},
        lambda b: (randn(b, 3, 64, 64),),
    ),
    (
        "t2i-adapter-light",
        "T2IAdapter",
        {"channels": [32, 64, 96], "num_res_blocks": 2, "adapter_type": "light_adapter", "downscale_factor": 8},
        lambda b: (randn(b, 3, 64, 64),),
    ),
]

HEADS = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}
JOINT = {**HEADS, "joint_attention_dim": 40, "num_single_layers": 2, "axes_dims_rope": [4, 6, 6]}
WAN = HEADS | {
    "patch_size": (1, 2, 2),
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 40,
    "freq_dim": 32,
    "ffn_dim": 144,
    "rope_max_seq_len": 32,
}


def grid(side: int) -> Tensor:
    """Image positions as Flux takes them: (side * side, 3)."""
    rows = torch.arange(side).repeat_interleave(side)
    return torch.stack([torch.zeros(side * side, dtype=torch.long), rows, torch.arange(side).repeat(side)], -1).float()


def joint(c: int = 16, n: int = 9, **more: Make) -> Make:
    """Packed latents, text, and their positions."""
    return lambda b: (
        {
            "hidden_states": randn(b, 16, c),
            "encoder_hidden_states": randn(b, n, 40),
            "timestep": moment(b),
            "img_ids": grid(4),
            "txt_ids": torch.zeros(n, 3),
        }
        | {k: v(b) for k, v in more.items()}
    )


def scalar(value: float) -> Make:
    return lambda b: torch.full((b,), value)


def pooled(c: int = 24) -> Make:
    return lambda b: randn(b, c)


def four(b: int) -> Tensor:
    return torch.zeros(b, 9, 4)


def sizes(b: int) -> Tensor:
    return torch.tensor([[64.0, 64.0]]).repeat(b, 1)


def rotary(n: int, d: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(n).float(), 100 ** (-torch.arange(0, d, 2) / d)).repeat_interleave(2, 1)
    return angles.cos(), angles.sin()


HUNYUAN = HEADS | {
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "hidden_size": 64,
    "cross_attention_dim": 40,
    "cross_attention_dim_t5": 24,
    "pooled_projection_dim": 20,
    "text_len": 5,
    "text_len_t5": 6,
}


def hunyuan(b: int) -> dict[str, Any]:
    return {
        "hidden_states": randn(b, 4, 8, 8),
        "timestep": steps(b).float(),
        "encoder_hidden_states": randn(b, 5, 40),
        "text_embedding_mask": ones(b, 5),
        "encoder_hidden_states_t5": randn(b, 6, 24),
        "text_embedding_mask_t5": ones(b, 6),
        "image_meta_size": ones(b, 6),
        "style": torch.zeros(b, dtype=torch.long),
        "image_rotary_emb": rotary(16, 16),
    }


SANA = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 64,
    "caption_channels": 40,
    "sample_size": 8,
    "patch_size": 1,
}
TRANSFORMERS: list[Row] = [
    (
        "dit",
        "DiTTransformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 20,
            "norm_type": "ada_norm_zero",
        },
        hidden(4, 8, 8, class_labels=lambda b: torch.arange(b)),
    ),
    (
        "pixart-alpha",
        "PixArtTransformer2DModel",
        HEADS
        | {
            "attention_head_dim": 18,
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "cross_attention_dim": 72,
            "caption_channels": 40,
            "use_additional_conditions": True,
        },
        hidden(
            4,
            8,
            8,
            encoder_hidden_states=TALK,
            added_cond_kwargs=lambda b: {"resolution": sizes(b), "aspect_ratio": ones(b, 1)},
        ),
    ),
    (
        "pixart-sigma",
        "PixArtTransformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "cross_attention_dim": 64,
            "caption_channels": 40,
            "use_additional_conditions": False,
        },
        hidden(
            4,
            8,
            8,
            encoder_hidden_states=TALK,
            added_cond_kwargs=lambda b: {"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=lambda b: ones(b, 9),
        ),
    ),
    (
        "sd3",
        "SD3Transformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "joint_attention_dim": 40,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 8,
        },
        hidden(4, 8, 8, encoder_hidden_states=TALK, pooled_projections=pooled()),
    ),
    (
        "sd3.5",
        "SD3Transformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "joint_attention_dim": 40,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        hidden(4, 8, 8, encoder_hidden_states=TALK, pooled_projections=pooled()),
    ),
    (
        "flux-schnell",
        "FluxTransformer2DModel",
        JOINT | {"in_channels": 16, "pooled_projection_dim": 24, "patch_size": 1},
        joint(pooled_projections=pooled()),
    ),
    (
        "flux-dev",
        "FluxTransformer2DModel",
        JOINT | {"in_channels": 16, "pooled_projection_dim": 24, "patch_size": 1, "guidance_embeds": True},
        joint(pooled_projections=pooled(), guidance=scalar(3.5)),
    ),
    (
        "flux-controlnet",
        "FluxControlNetModel",
        JOINT | {"in_channels": 16, "pooled_projection_dim": 24, "patch_size": 1},
        joint(pooled_projections=pooled(), controlnet_cond=lambda b: randn(b, 16, 16)),
    ),
    (
        "flux2",
        "Flux2Transformer2DModel",
        JOINT | {"in_channels": 16, "patch_size": 1, "axes_dims_rope": [4, 4, 4, 4], "timestep_guidance_channels": 32},
        lambda b: {
            "hidden_states": randn(b, 16, 16),
            "encoder_hidden_states": TALK(b),
            "timestep": moment(b),
            "guidance": ones(b) * 3,
            "img_ids": torch.zeros(b, 16, 4),
            "txt_ids": four(b),
        },
    ),
    (
        "flux3",
        "Flux3Transformer2DModel",
        JOINT | {"in_channels": 16, "cond_in_channels": 16, "axes_dims_rope": (4, 4, 4, 4), "timestep_channels": 32},
        lambda b: {
            "hidden_states": randn(b, 16, 16),
            "encoder_hidden_states": TALK(b),
            "timestep": moment(b),
            "img_ids": torch.zeros(16, 4),
            "txt_ids": torch.zeros(9, 4),
        },
    ),
    (
        "chroma",
        "ChromaTransformer2DModel",
        JOINT
        | {"in_channels": 16, "approximator_num_channels": 16, "approximator_hidden_dim": 48, "approximator_layers": 1},
        joint(),
    ),
    ("bria", "BriaTransformer2DModel", JOINT | {"in_channels": 16, "pooled_projection_dim": None}, joint()),
    (
        "bria-fibo",
        "BriaFiboTransformer2DModel",
        JOINT | {"in_channels": 16, "pooled_projection_dim": None, "joint_attention_dim": 40, "text_encoder_dim": 20},
        joint(text_encoder_layers=lambda b: [randn(b, 9, 20) for _ in range(4)]),
    ),
    ("ovis-image", "OvisImageTransformer2DModel", JOINT | {"in_channels": 16, "out_channels": 16}, joint()),
    (
        "longcat-image",
        "LongCatImageTransformer2DModel",
        JOINT | {"in_channels": 16, "pooled_projection_dim": 24},
        joint(guidance=scalar(3.5)),
    ),
    ("hunyuan-dit", "HunyuanDiT2DModel", HUNYUAN | {"num_layers": 4, "activation_fn": "gelu-approximate"}, hunyuan),
    (
        "hunyuan-controlnet",
        "HunyuanDiT2DControlNetModel",
        {k: v for k, v in HUNYUAN.items() if k != "num_layers"} | {"transformer_num_layers": 6},
        lambda b: hunyuan(b) | {"controlnet_cond": randn(b, 4, 8, 8)},
    ),
    (
        "lumina",
        "LuminaNextDiT2DModel",
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 64,
            "num_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "learn_sigma": False,
            "cross_attention_dim": 40,
        },
        lambda b: {
            "hidden_states": randn(b, 4, 8, 8),
            "timestep": moment(b),
            "encoder_hidden_states": TALK(b),
            "encoder_mask": ones(b, 9),
            "image_rotary_emb": torch.polar(ones(32, 32, 8), randn(32, 32, 8)),
            "cross_attention_kwargs": {},
        },
    ),
    (
        "lumina2",
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 64,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "axes_dim_rope": (4, 6, 6),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 40,
        },
        lambda b: {
            "hidden_states": randn(b, 4, 8, 8),
            "timestep": moment(b),
            "encoder_hidden_states": TALK(b),
            "encoder_attention_mask": torch.ones(b, 9, dtype=torch.bool),
        },
    ),
    (
        "auraflow",
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": 40,
            "caption_projection_dim": 64,
            "out_channels": 4,
            "pos_embed_max_size": 64,
        },
        hidden(4, 8, 8, encoder_hidden_states=TALK),
    ),
    ("sana", "SanaTransformer2DModel", SANA, hidden(4, 8, 8, encoder_hidden_states=TALK)),
    (
        "sana-sprint",
        "SanaTransformer2DModel",
        SANA | {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True},
        hidden(4, 8, 8, encoder_hidden_states=TALK, guidance=scalar(0.5)),
    ),
    (
        "sana-controlnet",
        "SanaControlNetModel",
        SANA,
        hidden(4, 8, 8, encoder_hidden_states=TALK, controlnet_cond=control(8, 4)),
    ),
    (
        "sana-video",
        "SanaVideoTransformer3DModel",
        SANA | {"patch_size": (1, 2, 2), "rope_max_seq_len": 32, "qk_norm": "rms_norm_across_heads"},
        hidden(4, 2, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "cogview3",
        "CogView3PlusTransformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "text_embed_dim": 40,
            "time_embed_dim": 48,
            "condition_dim": 16,
            "pos_embed_max_size": 8,
        },
        hidden(4, 8, 8, encoder_hidden_states=TALK, original_size=sizes, target_size=sizes, crop_coords=sizes),
    ),
    (
        "cogview4",
        "CogView4Transformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "text_embed_dim": 40,
            "time_embed_dim": 48,
            "condition_dim": 16,
            "sample_size": 8,
        },
        hidden(4, 8, 8, encoder_hidden_states=TALK, original_size=sizes, target_size=sizes, crop_coords=sizes),
    ),
    (
        "glm-image",
        "GlmImageTransformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "text_embed_dim": 40,
            "time_embed_dim": 48,
            "condition_dim": 16,
            "prior_vq_quantizer_codebook_size": 32,
        },
        hidden(
            4,
            8,
            8,
            encoder_hidden_states=TALK,
            prior_token_id=lambda b: torch.randint(0, 32, (b, 16)),
            prior_token_drop=lambda b: torch.zeros(b, 16, dtype=torch.bool),
            target_size=sizes,
            crop_coords=sizes,
        ),
    ),
    (
        "cogvideox",
        "CogVideoXTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 48,
            "text_embed_dim": 40,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 9,
        },
        hidden(2, 4, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "cogvideox-rotary",
        "CogVideoXTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 48,
            "text_embed_dim": 40,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 9,
            "use_rotary_positional_embeddings": True,
        },
        hidden(2, 4, 8, 8, encoder_hidden_states=TALK, image_rotary_emb=lambda b: rotary(32, 16)),
    ),
    (
        "latte",
        "LatteTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "caption_channels": 40,
            "cross_attention_dim": 64,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "norm_type": "ada_norm_single",
            "num_embeds_ada_norm": 1000,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "video_length": 2,
        },
        hidden(4, 2, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "allegro",
        "AllegroTransformer3DModel",
        HEADS
        | {
            "attention_head_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 96,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 2,
            "caption_channels": 40,
        },
        hidden(4, 2, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "mochi",
        "MochiTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "patch_size": 2,
            "pooled_projection_dim": 48,
            "text_embed_dim": 40,
            "time_embed_dim": 32,
            "max_sequence_length": 9,
        },
        hidden(
            4, 2, 8, 8, encoder_hidden_states=TALK, encoder_attention_mask=lambda b: torch.ones(b, 9, dtype=torch.bool)
        ),
    ),
    (
        "ltx",
        "LTXVideoTransformer3DModel",
        HEADS | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 64, "caption_channels": 40},
        lambda b: {
            "hidden_states": randn(b, 32, 8),
            "timestep": steps(b),
            "encoder_hidden_states": TALK(b),
            "encoder_attention_mask": torch.ones(b, 9, dtype=torch.bool),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    (
        "ltx2",
        "LTX2VideoTransformer3DModel",
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 64,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 4,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 32,
            "caption_channels": 40,
            "rope_double_precision": False,
        },
        lambda b: {
            "hidden_states": randn(b, 32, 8),
            "audio_hidden_states": randn(b, 6, 4),
            "encoder_hidden_states": TALK(b),
            "audio_encoder_hidden_states": TALK(b),
            "timestep": steps(b),
            "num_frames": 2,
            "height": 4,
            "width": 4,
            "audio_num_frames": 6,
            "fps": 25.0,
        },
    ),
    ("wan", "WanTransformer3DModel", WAN, hidden(4, 2, 8, 8, encoder_hidden_states=TALK)),
    (
        "wan-i2v",
        "WanTransformer3DModel",
        WAN | {"image_dim": 24, "added_kv_proj_dim": 64, "in_channels": 8},
        hidden(8, 2, 8, 8, encoder_hidden_states=TALK, encoder_hidden_states_image=text(5, 24)),
    ),
    (
        "wan-vace",
        "WanVACETransformer3DModel",
        WAN | {"vace_layers": [0], "vace_in_channels": 12},
        hidden(4, 2, 8, 8, encoder_hidden_states=TALK, control_hidden_states=lambda b: randn(b, 12, 2, 8, 8)),
    ),
    ("skyreels", "SkyReelsV2Transformer3DModel", WAN, hidden(4, 2, 8, 8, encoder_hidden_states=TALK)),
    (
        "chronoedit",
        "ChronoEditTransformer3DModel",
        WAN | {"rope_temporal_skip_len": 8},
        hidden(4, 2, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "anyflow",
        "AnyFlowTransformer3DModel",
        WAN,
        lambda b: {
            "hidden_states": randn(b, 2, 4, 8, 8),
            "timestep": ones(b, 2) * 500,
            "r_timestep": ones(b, 2) * 250,
            "encoder_hidden_states": TALK(b),
        },
    ),
    (
        "cosmos",
        "CosmosTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "mlp_ratio": 2,
            "text_embed_dim": 40,
            "adaln_lora_dim": 16,
            "max_size": (4, 16, 16),
            "patch_size": (1, 2, 2),
            "attention_head_dim": 18,
            "extra_pos_embed_type": "learnable",
        },
        hidden(
            4, 2, 8, 8, encoder_hidden_states=TALK, padding_mask=lambda b: torch.zeros(b, 1, 8, 8), fps=lambda b: 30
        ),
    ),
    (
        "easyanimate",
        "EasyAnimateTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "mmdit_layers": 2,
            "text_embed_dim": 40,
            "time_embed_dim": 48,
            "patch_size": 2,
            "sample_height": 8,
            "sample_width": 8,
        },
        hidden(4, 2, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "hunyuan-video",
        "HunyuanVideoTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "text_embed_dim": 40,
            "pooled_projection_dim": 24,
            "rope_axes_dim": (4, 6, 6),
            "guidance_embeds": True,
        },
        hidden(
            4,
            2,
            8,
            8,
            encoder_hidden_states=TALK,
            encoder_attention_mask=lambda b: ones(b, 9),
            pooled_projections=pooled(),
            guidance=scalar(6.0),
        ),
    ),
    (
        "hunyuan-video-1.5",
        "HunyuanVideo15Transformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "text_embed_dim": 40,
            "text_embed_2_dim": 20,
            "image_embed_dim": 12,
            "rope_axes_dim": (4, 6, 6),
            "target_size": 8,
            "task_type": "t2v",
        },
        hidden(
            4,
            1,
            8,
            8,
            timestep=moment,
            encoder_hidden_states=TALK,
            encoder_hidden_states_2=text(4, 20),
            image_embeds=text(3, 12),
            encoder_attention_mask=lambda b: ones(b, 9),
            encoder_attention_mask_2=lambda b: ones(b, 4),
        ),
    ),
    (
        "hunyuan-image",
        "HunyuanImageTransformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 40,
            "rope_axes_dim": (8, 8),
        },
        hidden(4, 8, 8, timestep=moment, encoder_hidden_states=TALK, encoder_attention_mask=lambda b: ones(b, 9)),
    ),
    (
        "hunyuan-framepack",
        "HunyuanVideoFramepackTransformer3DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 40,
            "pooled_projection_dim": 24,
            "rope_axes_dim": (4, 6, 6),
            "has_image_proj": True,
            "image_proj_dim": 12,
            "has_clean_x_embedder": True,
        },
        hidden(
            4,
            3,
            8,
            8,
            encoder_hidden_states=TALK,
            encoder_attention_mask=lambda b: ones(b, 9),
            pooled_projections=pooled(),
            guidance=scalar(6.0),
            image_embeds=text(9, 12),
            indices_latents=lambda b: ones(3),
            latents_clean=lambda b: randn(b, 4, 2, 8, 8),
            indices_latents_clean=lambda b: ones(2),
            latents_history_2x=lambda b: randn(b, 4, 2, 8, 8),
            indices_latents_history_2x=lambda b: ones(2),
            latents_history_4x=lambda b: randn(b, 4, 8, 8, 8),
            indices_latents_history_4x=lambda b: ones(8),
        ),
    ),
    (
        "hidream",
        "HiDreamImageTransformer2DModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 1,
            "num_single_layers": 1,
            "caption_channels": [40, 24],
            "text_emb_dim": 20,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": (8, 4, 4),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        lambda b: {
            "hidden_states": randn(b, 4, 8, 8),
            "timesteps": steps(b),
            "encoder_hidden_states_t5": TALK(b),
            "encoder_hidden_states_llama3": randn(2, b, 9, 24),
            "pooled_embeds": randn(b, 20),
        },
    ),
    (
        "qwen-image",
        "QwenImageTransformer2DModel",
        HEADS
        | {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "joint_attention_dim": 40,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda b: {
            "hidden_states": randn(b, 16, 16),
            "encoder_hidden_states": TALK(b),
            "timestep": moment(b),
            "encoder_hidden_states_mask": torch.ones(b, 9, dtype=torch.long),
            "img_shapes": [(1, 4, 4)] * b,
        },
    ),
    (
        "qwen-controlnet",
        "QwenImageControlNetModel",
        HEADS
        | {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "joint_attention_dim": 40,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda b: {
            "hidden_states": randn(b, 16, 16),
            "encoder_hidden_states": TALK(b),
            "timestep": moment(b),
            "controlnet_cond": randn(b, 16, 16),
            "encoder_hidden_states_mask": torch.ones(b, 9, dtype=torch.long),
            "img_shapes": [(1, 4, 4)] * b,
        },
    ),
    (
        "nucleus",
        "NucleusMoEImageTransformer2DModel",
        HEADS
        | {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "joint_attention_dim": 40,
            "axes_dims_rope": (4, 6, 6),
            "moe_enabled": False,
        },
        lambda b: {
            "hidden_states": randn(b, 16, 16),
            "encoder_hidden_states": TALK(b),
            "timestep": moment(b),
            "encoder_hidden_states_mask": torch.ones(b, 9, dtype=torch.long),
            "img_shapes": [(1, 4, 4)] * b,
        },
    ),
    (
        "omnigen",
        "OmniGenTransformer2DModel",
        {
            "in_channels": 4,
            "patch_size": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "num_layers": 2,
            "vocab_size": 120,
            "time_step_dim": 16,
            "pos_embed_max_size": 8,
            "pad_token_id": 0,
            "num_key_value_heads": 4,
            "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        },
        lambda b: {
            "hidden_states": randn(b, 4, 8, 8),
            "timestep": moment(b),
            "input_ids": torch.randint(1, 99, (b, 5)),
            "input_img_latents": [],
            "input_image_sizes": {},
            "attention_mask": ones(b, 22, 22),
            "position_ids": torch.arange(22).repeat(b, 1),
        },
    ),
    (
        "prx",
        "PRXTransformer2DModel",
        {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 40,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 4,
            "depth": 2,
            "axes_dim": [8, 8],
        },
        hidden(4, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "ernie-image",
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_layers": 2,
            "ffn_hidden_size": 96,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 1,
            "text_in_dim": 40,
            "rope_axes_dim": (8, 4, 4),
        },
        lambda b: {
            "hidden_states": randn(b, 4, 8, 8),
            "timestep": moment(b),
            "text_bth": TALK(b),
            "text_lens": torch.full((b,), 9),
        },
    ),
    (
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 40,
            "in_text_dim2": 24,
            "time_dim": 32,
            "model_dim": 64,
            "ff_dim": 96,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (8, 12, 12),
        },
        lambda b: {
            "hidden_states": randn(b, 2, 8, 8, 4),
            "encoder_hidden_states": TALK(b),
            "timestep": moment(b),
            "pooled_projections": randn(b, 24),
            "text_rope_pos": torch.arange(9),
            "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        },
    ),
    (
        "krea2",
        "Krea2Transformer2DModel",
        HEADS
        | {
            "in_channels": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 32,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 48,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (8, 4, 4),
        },
        lambda b: {
            "hidden_states": randn(b, 16, 16),
            "encoder_hidden_states": randn(b, 9, 2, 32),
            "timestep": moment(b),
            "position_ids": torch.cat([torch.zeros(9, 3), grid(4)]),
        },
    ),
    (
        "joyimage",
        "JoyImageEditTransformer3DModel",
        {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "text_dim": 40,
            "num_layers": 2,
            "rope_dim_list": [4, 6, 6],
        },
        hidden(4, 1, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "motif-video",
        "MotifVideoTransformer3DModel",
        HEADS
        | {
            "in_channels": 9,
            "out_channels": 4,
            "attention_head_dim": 24,
            "num_single_layers": 2,
            "num_decoder_layers": 0,
            "patch_size": 2,
            "patch_size_t": 1,
            "text_embed_dim": 40,
            "image_embed_dim": 8,
            "rope_axes_dim": (8, 8, 8),
        },
        hidden(9, 2, 8, 8, encoder_hidden_states=TALK),
    ),
    (
        "z-image",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 64,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 4,
            "cap_feat_dim": 40,
            "axes_dims": [8, 4, 4],
            "axes_lens": [64, 32, 32],
        },
        lambda b: {"x": [randn(4, 1, 8, 8)] * b, "t": moment(b), "cap_feats": [randn(9, 40)] * b},
    ),
    (
        "stable-audio",
        "StableAudioDiTModel",
        HEADS
        | {
            "sample_size": 16,
            "in_channels": 8,
            "out_channels": 8,
            "num_key_value_attention_heads": 2,
            "cross_attention_dim": 64,
            "time_proj_dim": 16,
            "global_states_input_dim": 48,
            "cross_attention_input_dim": 40,
        },
        lambda b: {
            "hidden_states": randn(b, 8, 16),
            "timestep": moment(b),
            "encoder_hidden_states": TALK(b),
            "global_hidden_states": randn(b, 1, 48),
            "rotary_embedding": rotary(17, 8),
        },
    ),
    (
        "stable-audio-3",
        "StableAudio3DiTModel",
        {
            "io_channels": 8,
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 4,
            "cond_token_dim": 40,
            "global_cond_dim": 24,
            "local_add_cond_dim": 9,
            "timestep_features_dim": 16,
            "num_memory_tokens": 4,
        },
        lambda b: {
            "hidden_states": randn(b, 8, 16),
            "timestep": moment(b),
            "encoder_hidden_states": TALK(b),
            "global_hidden_states": randn(b, 24),
        },
    ),
    (
        "ace-step",
        "AceStepTransformer1DModel",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
            "patch_size": 2,
            "sliding_window": 8,
        },
        lambda b: {
            "hidden_states": randn(b, 8, 8),
            "timestep": moment(b),
            "timestep_r": moment(b) / 2,
            "encoder_hidden_states": randn(b, 9, 64),
            "context_latents": randn(b, 8, 16),
        },
    ),
    (
        "longcat-audio",
        "LongCatAudioDiTTransformer",
        {"dit_dim": 64, "dit_depth": 2, "dit_heads": 4, "dit_text_dim": 40, "latent_dim": 8, "text_conv": True},
        lambda b: {
            "hidden_states": randn(b, 16, 8),
            "encoder_hidden_states": TALK(b),
            "timestep": moment(b),
            "encoder_attention_mask": torch.ones(b, 9, dtype=torch.bool),
            "attention_mask": torch.ones(b, 16, dtype=torch.bool),
        },
    ),
    (
        "minimax-music3",
        "MiniMaxMusic3Transformer1DModel",
        HEADS
        | {"in_channels": 8, "condition_dim": 40, "ff_inner_dim": 96, "rotary_dim": 8, "fourier_embedding_dim": 16},
        lambda b: {"hidden_states": randn(b, 8, 16), "encoder_hidden_states": randn(b, 16, 40), "timestep": moment(b)},
    ),
    (
        "minimax-depth",
        "MiniMaxMusic3RVQDepthDecoder",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "audio_vocab_size": 40,
            "num_codebooks": 4,
        },
        lambda b: {"inputs_embeds": randn(b, 4, 64)},
    ),
    (
        "anima-text",
        "AnimaTextConditioner",
        {
            "source_dim": 40,
            "target_dim": 64,
            "model_dim": 64,
            "num_layers": 2,
            "num_attention_heads": 4,
            "target_vocab_size": 60,
            "min_sequence_length": 8,
        },
        lambda b: {"source_hidden_states": TALK(b), "target_input_ids": torch.randint(1, 60, (b, 7))},
    ),
    (
        "t5-film",
        "T5FilmDecoder",
        {
            "input_dims": 12,
            "targets_length": 16,
            "d_model": 64,
            "num_layers": 2,
            "num_heads": 4,
            "d_kv": 16,
            "d_ff": 96,
        },
        lambda b: {
            "encodings_and_masks": [(randn(b, 9, 64), ones(b, 9))],
            "decoder_input_tokens": randn(b, 16, 12),
            "decoder_noise_time": moment(b),
        },
    ),
    (
        "transformer2d-continuous",
        "Transformer2DModel",
        HEADS | {"in_channels": 32, "norm_num_groups": 8, "cross_attention_dim": 40},
        lambda b: {"hidden_states": randn(b, 32, 8, 8), "encoder_hidden_states": TALK(b)},
    ),
    (
        "transformer2d-linear",
        "Transformer2DModel",
        HEADS | {"in_channels": 32, "norm_num_groups": 8, "use_linear_projection": True, "double_self_attention": True},
        lambda b: {"hidden_states": randn(b, 32, 8, 8)},
    ),
    (
        "transformer2d-patched",
        "Transformer2DModel",
        HEADS
        | {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_embeds_ada_norm": 20,
            "norm_type": "ada_norm_zero",
            "attention_bias": True,
        },
        hidden(4, 8, 8, class_labels=lambda b: torch.arange(b)),
    ),
    (
        "transformer-temporal",
        "TransformerTemporalModel",
        HEADS | {"in_channels": 32, "norm_num_groups": 8},
        lambda b: {"hidden_states": randn(b * 3, 32, 4, 4), "num_frames": 3},
    ),
    (
        "prior",
        "PriorTransformer",
        HEADS | {"embedding_dim": 24, "num_embeddings": 5, "additional_embeddings": 4},
        lambda b: {
            "hidden_states": randn(b, 24),
            "timestep": steps(b),
            "proj_embedding": randn(b, 24),
            "encoder_hidden_states": randn(b, 5, 24),
        },
    ),
    (
        "prior-shap-e",
        "PriorTransformer",
        HEADS
        | {
            "embedding_dim": 24,
            "num_embeddings": 5,
            "additional_embeddings": 0,
            "time_embed_act_fn": "gelu",
            "clip_embed_dim": 48,
            "embedding_proj_norm_type": "layer",
            "embedding_proj_dim": 20,
            "encoder_hid_proj_type": None,
            "added_emb_type": None,
            "norm_in_type": "layer",
            "time_embed_dim": 96,
        },
        lambda b: {"hidden_states": randn(b, 5, 24), "timestep": steps(b), "proj_embedding": randn(b, 20)},
    ),
    (
        "sd3-controlnet",
        "SD3ControlNetModel",
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "joint_attention_dim": 40,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 8,
        },
        hidden(4, 8, 8, encoder_hidden_states=TALK, pooled_projections=pooled(), controlnet_cond=control(8, 4)),
    ),
    (
        "cosmos-controlnet",
        "CosmosControlNetModel",
        {
            "n_controlnet_blocks": 2,
            "in_channels": 6,
            "latent_channels": 6,
            "model_channels": 72,
            "num_attention_heads": 4,
            "attention_head_dim": 18,
            "mlp_ratio": 2,
            "text_embed_dim": 72,
            "adaln_lora_dim": 16,
            "patch_size": (1, 2, 2),
            "max_size": (4, 16, 16),
            "extra_pos_embed_type": None,
            "use_crossattn_projection": False,
            "img_context_dim_in": 40,
            "img_context_dim_out": 72,
        },
        lambda b: {
            "controls_latents": randn(b, 4, 1, 8, 8),
            "latents": randn(b, 4, 1, 8, 8),
            "timestep": moment(b),
            "encoder_hidden_states": (randn(b, 9, 72), randn(b, 3, 40)),
            "condition_mask": ones(b, 1, 1, 8, 8),
            "padding_mask": torch.zeros(b, 1, 8, 8),
        },
    ),
]

KL = {"block_out_channels": (32, 64), "norm_num_groups": 8, "latent_channels": 4, "layers_per_block": 1}
DOWN2, UP2 = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
AUTOENCODERS: list[Row] = [
    ("vae", "AutoencoderKL", KL | {"down_block_types": DOWN2, "up_block_types": UP2}, picture()),
    (
        "vae-flux",
        "AutoencoderKL",
        KL
        | {
            "down_block_types": DOWN2,
            "up_block_types": UP2,
            "latent_channels": 16,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        picture(),
    ),
    ("vae-flux2", "AutoencoderKLFlux2", KL | {"down_block_types": DOWN2, "up_block_types": UP2}, picture()),
    (
        "vae-tiny",
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32),
            "num_encoder_blocks": (1, 2, 2),
            "num_decoder_blocks": (2, 2, 1),
        },
        picture(),
    ),
    (
        "vae-asymmetric",
        "AsymmetricAutoencoderKL",
        {
            "down_block_types": DOWN2,
            "down_block_out_channels": (32, 48),
            "layers_per_down_block": 1,
            "up_block_types": UP2,
            "up_block_out_channels": (32, 64),
            "layers_per_up_block": 1,
            "norm_num_groups": 8,
        },
        picture(),
    ),
    ("vae-vq", "VQModel", KL | {"down_block_types": DOWN2, "up_block_types": UP2, "num_vq_embeddings": 32}, picture()),
    (
        "vae-vq-spatial",
        "VQModel",
        KL | {"down_block_types": DOWN2, "up_block_types": UP2, "num_vq_embeddings": 32, "norm_type": "spatial"},
        picture(),
    ),
    (
        "vae-consistency",
        "ConsistencyDecoderVAE",
        {
            "encoder_block_out_channels": (32, 48),
            "encoder_in_channels": 3,
            "encoder_out_channels": 4,
            "latent_channels": 4,
            "encoder_down_block_types": DOWN2,
            "encoder_norm_num_groups": 8,
            "encoder_layers_per_block": 1,
            "decoder_add_attention": False,
            "decoder_block_out_channels": (32, 64),
            "decoder_norm_num_groups": 8,
            "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
            "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
            "decoder_downsample_padding": 1,
            "decoder_in_channels": 7,
            "decoder_layers_per_block": 1,
            "decoder_out_channels": 6,
            "decoder_resnet_time_scale_shift": "scale_shift",
            "decoder_time_embedding_type": "learned",
            "decoder_num_train_timesteps": 1024,
        },
        picture(),
    ),
    (
        "vae-temporal",
        "AutoencoderKLTemporalDecoder",
        {"block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": DOWN2},
        lambda b: {"sample": randn(3 * b, 3, 32, 32), "num_frames": 3},
    ),
    (
        "vae-dc",
        "AutoencoderDC",
        {
            "latent_channels": 4,
            "attention_head_dim": 16,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (32, 64),
            "decoder_block_out_channels": (32, 64),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
        },
        picture(),
    ),
    (
        "vae-dc-shuffle",
        "AutoencoderDC",
        {
            "latent_channels": 8,
            "attention_head_dim": 16,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (32, 64),
            "decoder_block_out_channels": (32, 64),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
        },
        picture(),
    ),
    (
        "vae-oobleck",
        "AutoencoderOobleck",
        {
            "encoder_hidden_size": 16,
            "decoder_channels": 16,
            "decoder_input_channels": 8,
            "audio_channels": 2,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
        },
        sound(64, 2),
    ),
    (
        "vae-cogvideox",
        "AutoencoderKLCogVideoX",
        {
            "block_out_channels": (16, 32, 32, 48),
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_height": 16,
            "sample_width": 16,
        },
        video(5, 16),
    ),
    (
        "vae-cosmos",
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (16, 32, 32),
            "decode_block_out_channels": (16, 32, 32),
            "attention_resolutions": (8,),
            "resolution": 32,
            "num_layers": 1,
            "spatial_compression_ratio": 8,
            "temporal_compression_ratio": 4,
        },
        video(9, 32),
    ),
    (
        "vae-hunyuan-video",
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": (16, 32, 32, 32), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 8},
        video(5, 16),
    ),
    (
        "vae-hunyuan-video-1.5",
        "AutoencoderKLHunyuanVideo15",
        {
            "latent_channels": 8,
            "block_out_channels": (16, 32, 32),
            "layers_per_block": 1,
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 4,
        },
        video(5, 16),
    ),
    (
        "vae-hunyuan-image",
        "AutoencoderKLHunyuanImage",
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 8,
            "block_out_channels": (32, 32, 64),
            "layers_per_block": 1,
            "spatial_compression_ratio": 4,
            "sample_size": 32,
        },
        picture(),
    ),
    (
        "vae-hunyuan-refiner",
        "AutoencoderKLHunyuanImageRefiner",
        {
            "latent_channels": 8,
            "block_out_channels": (32, 32, 64),
            "layers_per_block": 1,
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 2,
        },
        video(3, 16),
    ),
    (
        "vae-kvae",
        "AutoencoderKLKVAE",
        {
            "channels": 32,
            "num_enc_blocks": 1,
            "num_dec_blocks": 1,
            "z_channels": 4,
            "ch_mult": (1, 2),
            "sample_size": 32,
        },
        picture(),
    ),
    (
        "vae-kvae-video",
        "AutoencoderKLKVAEVideo",
        {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "temporal_compress_times": 2},
        video(3, 16),
    ),
    (
        "vae-ltx",
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 8,
            "block_out_channels": (16, 32, 32, 32),
            "decoder_block_out_channels": (16, 32, 32, 32),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
            "patch_size": 2,
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
        },
        video(9, 16),
    ),
    (
        "vae-ltx2",
        "AutoencoderKLLTX2Video",
        {
            "latent_channels": 8,
            "block_out_channels": (16, 16, 32, 32),
            "decoder_block_out_channels": (16, 32, 64),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 4,
            "patch_size": 1,
        },
        video(9, 32),
    ),
    (
        "vae-ltx2-audio",
        "AutoencoderKLLTX2Audio",
        {
            "base_channels": 16,
            "ch_mult": (1, 2),
            "num_res_blocks": 1,
            "latent_channels": 4,
            "mel_bins": 16,
            "resolution": 16,
        },
        lambda b: {"sample": randn(b, 2, 12, 16)},
    ),
    (
        "vae-magvit",
        "AutoencoderKLMagvit",
        {"latent_channels": 4, "block_out_channels": (16, 32, 32, 32), "layers_per_block": 1, "norm_num_groups": 8},
        video(9, 16),
    ),
    (
        "vae-mochi",
        "AutoencoderKLMochi",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (32, 32, 64, 64),
            "decoder_block_out_channels": (32, 32, 64, 64),
            "layers_per_block": (1, 1, 1, 1, 1),
        },
        video(7, 16),
    ),
    (
        "vae-qwen",
        "AutoencoderKLQwenImage",
        {"base_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
        video(1, 16),
    ),
    ("vae-wan", "AutoencoderKLWan", {"base_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}, video(5, 16)),
    (
        "vae-vidtok",
        "AutoencoderVidTok",
        {
            "ch": 32,
            "ch_mult": [1, 1, 2, 2, 2],
            "z_channels": 4,
            "num_res_blocks": 1,
            "double_z": True,
            "regularizer": "kl",
            "is_causal": False,
        },
        video(8, 32),
    ),
    (
        "vae-kandinsky6",
        "Kandinsky6SRVAE",
        {
            "latent_channels": 8,
            "encoder_block_out_channels": (16, 32, 32, 48, 48),
            "layers_per_block": 1,
            "decoder_block_out_channels": (16, 32, 32, 48, 48),
        },
        video(5, 32),
    ),
    (
        "vae-longcat-audio",
        "LongCatAudioDiTVae",
        {
            "channels": 16,
            "c_mults": [1, 2],
            "strides": [2, 4],
            "latent_dim": 8,
            "encoder_latent_dim": 16,
            "downsampling_ratio": 8,
        },
        sound(64),
    ),
    (
        "vocoder-mmaudio",
        "MMAudioVocoder",
        {
            "num_mels": 16,
            "upsample_initial_channel": 64,
            "upsample_rates": (2, 2),
            "upsample_kernel_sizes": (4, 4),
            "resblock_kernel_sizes": (3, 7),
            "resblock_dilation_sizes": ((1, 3), (1, 3)),
        },
        lambda b: {"mel": randn(b, 16, 12)},
    ),
    (
        "vocoder-minimax",
        "MiniMaxMusic3Vocoder",
        {"latent_channels": 8, "decoder_input_dim": 32, "decoder_hidden_dim": 64, "upsampling_ratios": (2, 2)},
        lambda b: {"latents": randn(b, 8, 12)},
    ),
    (
        "vae-rae",
        "AutoencoderRAE",
        {
            "encoder_type": "mae",
            "encoder_hidden_size": 64,
            "encoder_patch_size": 8,
            "encoder_input_size": 32,
            "patch_size": 4,
            "image_size": 16,
            "decoder_hidden_size": 64,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 96,
            "encoder_num_hidden_layers": 1,
        },
        picture(),
    ),
    (
        "vae-same",
        "AutoencoderSAME",
        {
            "audio_channels": 2,
            "patch_size": 8,
            "encoder_channels": 16,
            "encoder_c_mults": (4,),
            "encoder_strides": (2,),
            "encoder_transformer_depths": (1,),
            "latent_dim": 8,
            "dim_heads": 16,
        },
        sound(128, 2),
    ),
]


def _net(name: str, config: dict[str, Any]) -> nn.Module:
    return getattr(D, name)(**config)  # type: ignore[no-any-return]


def cases() -> Iterator[Case]:
    for family, rows in (
        ("diffusers UNet", UNETS),
        ("diffusers transformer", TRANSFORMERS),
        ("diffusers autoencoder", AUTOENCODERS),
    ):
        for name, cls, config, given in rows:
            make = lambda cls=cls, config=config: _net(cls, config)  # noqa: E731
            yield Case(f"diffusers/{name}", family, make, given, note=cls)
    yield Case(
        "diffusers/dual-transformer",
        "diffusers transformer",
        lambda: DualTransformer2DModel(**HEADS, in_channels=32, norm_num_groups=8, cross_attention_dim=40),
        lambda b: {"hidden_states": randn(b, 32, 8, 8), "encoder_hidden_states": randn(b, 77 + 257, 40)},
        note="DualTransformer2DModel",
    )
