"""Latent diffusion: diffusers' UNet2DConditionModel (Stable Diffusion, SDXL, Kandinsky 2, IF) and autoencoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.adapters.autoencoding import Autoencoder
from fxprune.adapters.denoising import Denoiser
from fxprune.adapters.diffusers_base import DiffusersAdapter, backbone, side_of, unknown_inputs
from fxprune.adapters.noising import VariancePreserving
from fxprune.adapters.tensors import draw, draw_integers
from fxprune.errors import InputsError

# Stable Diffusion's schedule; latents are not clipped.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}
TOKENS = 77  # CLIP's text length
TIME_IDS = 6  # SDXL's original size, crop and target size
LARGEST = 128  # pixels; an autoencoder is convolutional, so a larger example would only cost time


class LDMAdapter(DiffusersAdapter):
    """`UNet2DConditionModel`, autoencoders, and pipelines around them; other diffusers models but transformers, too.

    Without data, the calibration samples are latents that the model draws itself under random conditions, and an
    autoencoder decodes random latents.  `data=` holds latents and embeddings (`dict(images=latents,
    encoder_hidden_states=...)`), images for an autoencoder.  Of further classes (ControlNet, video UNets) only the
    config is known: give them example inputs.

    Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022.
    """

    def recognises(self, given: object) -> bool:
        """Any diffusers model (or a pipeline around one) that is neither a UNet2DModel nor a transformer."""
        net = backbone(given)
        if net is None:
            return False
        from diffusers import ModelMixin, UNet2DModel

        other = any(c.__module__.startswith("diffusers.models.transformers.") for c in type(net).__mro__)
        return isinstance(net, ModelMixin) and not isinstance(net, UNet2DModel) and not other

    def task(self, model: nn.Module) -> Denoiser | Autoencoder:
        """Latents, text and further conditions from the config, or an autoencoder's images.

        Raises:
            InputsError: for any other class, or a config of a kind that is not known here.
        """
        import diffusers

        kinds = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AsymmetricAutoencoderKL", "AutoencoderDC")
        if isinstance(model, tuple(getattr(diffusers, k) for k in kinds if hasattr(diffusers, k))):
            return _autoencoder(model)
        if isinstance(model, diffusers.UNet2DConditionModel):
            return _unet(model)
        raise unknown_inputs(model)

    def protect(self, model: nn.Module) -> tuple[str, ...]:
        """The layers on either side of an autoencoder's latents, whose channels the denoiser relies on."""
        held = dict(model.named_modules())
        if "encoder" not in held or "decoder" not in held:
            return ()
        convolutions = [n for n, m in held.items() if isinstance(m, nn.Conv2d)]
        last = [n for n in convolutions if n.startswith("encoder.")][-1:]
        first = [n for n in convolutions if n.startswith("decoder.")][:1]
        return tuple(n for n in ("quant_conv", "quantize", "post_quant_conv") if n in held) or (*last, *first)


def _autoencoder(model: nn.Module) -> Autoencoder:
    config: Any = model.config
    height, width = side_of(config, 64)
    return Autoencoder((config.in_channels, min(height, LARGEST), min(width, LARGEST)))


def _unet(model: nn.Module) -> Denoiser:
    config: Any = model.config
    # Twice the channels out is a learned variance; fewer out than in is a picture to be filled in (inpainting).
    channels = min(config.in_channels, config.out_channels)
    return Denoiser(
        image=(channels, *side_of(config, 4 * 2 ** (len(config.block_out_channels) - 1))),
        noising=VariancePreserving(SCHEDULE),
        conditions=lambda n, generator: _conditions(model, n, generator),
        beside=config.in_channels - channels,
    )


def _conditions(model: nn.Module, n: int, generator: torch.Generator) -> dict[str, Any]:
    config: Any = model.config
    out: dict[str, Any] = {"encoder_hidden_states": draw(model, (n, TOKENS, _text_width(config)), generator)}
    if (labels := _class_labels(model, n, generator)) is not None:
        out["class_labels"] = labels
    if added := _added(model, n, generator):
        out["added_cond_kwargs"] = added
    return out


def _text_width(config: Any) -> int:
    width = config.encoder_hid_dim or config.cross_attention_dim
    return int(width[0] if isinstance(width, (tuple, list)) else width)


def _class_labels(model: nn.Module, n: int, generator: torch.Generator) -> Tensor | None:
    config: Any = model.config
    kind = config.class_embed_type
    if kind in ("projection", "simple_projection"):
        return draw(model, (n, config.projection_class_embeddings_input_dim), generator)
    if kind == "identity":
        width = model.time_embedding.linear_2.out_features  # type: ignore[union-attr]
        return draw(model, (n, int(width)), generator)  # type: ignore[arg-type]
    if kind == "timestep" or config.num_class_embeds is not None:
        return draw_integers(model, (n,), config.num_class_embeds or 1000, generator)
    return None


def _added(model: nn.Module, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`added_cond_kwargs`: what `addition_embed_type` and `encoder_hid_dim_type` ask for."""
    config: Any = model.config
    kind, hidden = config.addition_embed_type, config.encoder_hid_dim_type
    out: dict[str, Tensor] = {}
    if kind == "text_time":
        pooled = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
        out["text_embeds"] = draw(model, (n, pooled), generator)
        out["time_ids"] = draw_integers(model, (n, TIME_IDS), 1024, generator).to(out["text_embeds"].dtype)
    elif kind == "text_image" or hidden == "text_image_proj":
        out["text_embeds"] = draw(model, (n, config.cross_attention_dim), generator)
        out["image_embeds"] = draw(model, (n, config.cross_attention_dim), generator)
    elif kind in ("image", "image_hint") or hidden == "image_proj":
        out["image_embeds"] = draw(model, (n, config.encoder_hid_dim), generator)
    elif hidden == "ip_image_proj":
        raise InputsError("a UNet with an IP-Adapter takes image prompts: pass example_inputs=, or unload the adapter")
    if kind == "image_hint":
        height, width = side_of(config, 64)
        out["hint"] = draw(model, (n, 3, 8 * height, 8 * width), generator)
    return out
