"""Diffusion transformers of diffusers: DiT, PixArt, SD3, Flux, and others whose arguments are of the same kinds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.adapters.denoising import Denoiser
from fxprune.adapters.diffusers_base import DiffusersAdapter, backbone, side_of, unknown_inputs
from fxprune.adapters.encoding import grid
from fxprune.adapters.noising import Flow, Noising, VariancePreserving
from fxprune.adapters.tensors import draw, draw_integers, place

TOKENS = 77
SIDE = 16  # of the latents in tokens, where the config has no sample size
FRAMES = 4  # latent frames of a video model
SCHEDULE = {"num_train_timesteps": 1000, "clip_sample": False}
# Trained by flow matching; the number is the time that the model sees at σ = 1.  All others: noise prediction.
FLOWS = {
    "SD3Transformer2DModel": 1000.0,
    "SanaTransformer2DModel": 1000.0,
    "FluxTransformer2DModel": 1.0,
    "ChromaTransformer2DModel": 1.0,
    "AuraFlowTransformer2DModel": 1.0,
    "WanTransformer3DModel": 1000.0,
    "HunyuanVideoTransformer3DModel": 1000.0,
}
# The config keys that can hold the width of the text embeddings, the outermost projection first.
TEXT_WIDTHS = (
    "caption_channels",
    "joint_attention_dim",
    "text_embed_dim",
    "text_dim",
    "context_in_dim",
    "cap_feat_dim",
    "cross_attention_dim",
)


class DiTAdapter(DiffusersAdapter):
    """Every model in `diffusers.models.transformers`, or a pipeline around one.

    Inputs are made by the names of forward's arguments, with sizes from the config.  A model with a required argument
    of another kind is refused, and needs `example_inputs=`.  Without data it draws its own calibration latents under
    random conditions; the loss is that of noise prediction or of flow matching.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers, ICCV 2023.
    """

    def recognises(self, given: object) -> bool:
        """A diffusers transformer, or a pipeline around one."""
        net = backbone(given)
        names = (c.__module__ for c in type(net).__mro__)
        return hasattr(net, "config") and any(name.startswith("diffusers.models.transformers.") for name in names)

    def task(self, model: nn.Module) -> Denoiser:
        """Latents, text, classes and positions, as forward asks for them.

        Raises:
            InputsError: forward requires an argument that is not known here.
        """
        takes = inspect.signature(model.forward).parameters
        required = [n for n, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        unknown = [n for n in required if n not in ("hidden_states", "timestep", *MAKERS)]
        channels = model.config.get("in_channels")  # type: ignore[operator, union-attr]
        if unknown or not channels or "hidden_states" not in takes or "timestep" not in takes:
            raise unknown_inputs(model, f"the argument {unknown[0]!r}" if unknown else "the inputs")
        noising = _noising(model)
        return Denoiser(
            image=_image(model, "img_ids" in takes),
            noising=noising,
            time=noising.unit / 2 if isinstance(noising, Flow) else 10,
            entry="hidden_states",
            conditions=lambda n, generator: _conditions(model, list(takes), required, n, generator),
            made_up=frozenset({"img_ids", "txt_ids", "guidance", "encoder_attention_mask"}),
        )


@dataclass(frozen=True)
class Made:
    """What a maker of one argument sees."""

    model: nn.Module
    n: int
    generator: torch.Generator

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    def draw(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return draw(self.model, shape, self.generator)


Maker: TypeAlias = Callable[[Made], Any]


def _text(m: Made) -> Tensor | None:
    width = next((m.config[k] for k in TEXT_WIDTHS if m.config.get(k)), None)
    return None if width is None else m.draw(m.n, TOKENS, width)


def _labels(m: Made) -> Tensor | None:
    classes = m.config.get("num_embeds_ada_norm")
    return draw_integers(m.model, (m.n,), classes, m.generator) if classes else None


def _pooled(m: Made) -> Tensor | None:
    width = m.config.get("pooled_projection_dim")
    return m.draw(m.n, width) if width else None


def _picture(m: Made) -> dict[str, Tensor] | None:
    """PixArt's resolution and aspect ratio, where the model was trained with them."""
    if not getattr(m.model, "use_additional_conditions", False):
        return None
    height, width = side_of(m.config, SIDE)
    row = torch.tensor([[8.0 * height, 8.0 * width]]).expand(m.n, 2).to(*place(m.model))
    return {"resolution": row, "aspect_ratio": row[:, :1] / row[:, 1:]}


def _image_ids(m: Made) -> Tensor:
    return grid(SIDE, SIDE).to(*place(m.model))


def _guidance(m: Made) -> Tensor | None:
    return torch.full((m.n,), 3.5).to(*place(m.model)) if m.config.get("guidance_embeds") else None


MAKERS: dict[str, Maker] = {
    "encoder_hidden_states": _text,
    "encoder_attention_mask": lambda m: torch.ones(m.n, TOKENS, dtype=torch.int64, device=place(m.model)[0]),
    "class_labels": _labels,
    "pooled_projections": _pooled,
    "added_cond_kwargs": _picture,
    "img_ids": _image_ids,
    "txt_ids": lambda m: torch.zeros(TOKENS, 3).to(*place(m.model)),
    "guidance": _guidance,
}
ONLY_IF_REQUIRED = ("encoder_attention_mask",)


def _conditions(
    model: nn.Module, takes: list[str], required: list[str], n: int, generator: torch.Generator
) -> dict[str, Any]:
    wanted = [name for name in takes if name in MAKERS and (name in required or name not in ONLY_IF_REQUIRED)]
    made = {name: MAKERS[name](Made(model, n, generator)) for name in wanted}
    if missing := [name for name, value in made.items() if value is None and name in required]:
        raise unknown_inputs(model, f"the argument {missing[0]!r}")
    return {name: value for name, value in made.items() if value is not None}


def _image(model: nn.Module, tokens: bool) -> tuple[int, ...]:
    """(C, H, W), with frames (C, F, H, W), or (tokens, C) where the pipeline cuts the patches."""
    config: Any = model.config
    if tokens:
        return (SIDE * SIDE, config.in_channels)
    height, width = side_of(config, 2 * SIDE)
    if any(isinstance(m, nn.Conv3d) for m in model.modules()):
        return (config.in_channels, FRAMES, height, width)
    return (config.in_channels, height, width)


def _noising(model: nn.Module) -> Noising:
    unit = next((FLOWS[c.__name__] for c in type(model).__mro__ if c.__name__ in FLOWS), None)
    return VariancePreserving(SCHEDULE) if unit is None else Flow(unit)
