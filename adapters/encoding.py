"""What a pipeline's own encoders make of pixels and prompts, for the denoiser in it.

Prompts go through the pipeline itself: it is called with them, and stopped at the moment when it calls its denoiser.
What it calls it with are the conditions, whichever text encoders it has and however it combines them.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.adapters.denoising import IMAGES, Denoiser
from fxprune.adapters.tensors import place
from fxprune.errors import InputsError

TEXTS = ("prompt", "prompts", "text", "caption")
TOKENS = 77
PACKS = ("latents", "batch_size", "num_channels_latents", "height", "width")  # what packs them two by two takes
SUBJECTS = "a cat, a bowl of fruit, a street at night, an old man, mountains by a lake, a red car, a castle, flowers"
PROMPTS = tuple(f"{how} of {what}" for what in SUBJECTS.split(", ") for how in ("a photo", "a painting"))
# Arguments of pipelines: one step without guidance, short texts, and nothing done to the prompt first.
ONE_STEP: dict[str, Any] = {
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "output_type": "latent",
    "max_sequence_length": TOKENS,
    "clean_caption": False,
    "complex_human_instruction": None,
    "use_resolution_binning": False,
}


@dataclass(frozen=True, eq=False)
class Encoders:
    """A pipeline, the denoiser in it, and how that is called."""

    pipeline: Any
    model: nn.Module
    task: Denoiser

    @property
    def read_text(self) -> bool:
        """Whether the pipeline turns prompts into conditions of its denoiser."""
        names = [n for n in self.pipeline.components if n.startswith("text_encoder")]
        has = any(self.pipeline.components[n] is not None for n in names)
        return has and "prompt" in inspect.signature(self.pipeline.__call__).parameters

    def prompted(self, n: int, generator: torch.Generator) -> dict[str, Any]:
        """Conditions of n plain prompts; random ones, with a warning, where the pipeline needs more than a prompt."""
        first = int(torch.randint(len(PROMPTS), (1,), generator=generator))
        try:
            return self.conditions([PROMPTS[(first + i) % len(PROMPTS)] for i in range(n)])
        except InputsError as e:
            warnings.warn(f"{e}; the conditions are random numbers instead", stacklevel=2)
            return self.task.conditions(n, generator)

    def conditions(self, prompts: Sequence[str], tokens: tuple[int, int] | None = None) -> dict[str, Any]:
        """What the pipeline gives its denoiser for prompts.

        Args:
            tokens: rows and columns of those of a picture, where they are packed; None: as many as the task says.

        Raises:
            InputsError: where the pipeline cannot be called with prompts alone.
        """
        if self.packed and tokens is None:
            tokens = (math.isqrt(self.task.image[0]),) * 2
        caught = self._first_call(prompts, tokens)
        mine = {self.task.entry, "timestep", "img_ids", "guidance"}
        made = {k: v for k, v in self.task.conditions(len(prompts), torch.Generator()).items() if k in mine}
        return made | {k: v for k, v in caught.items() if k not in mine and _is_data(v)}

    def _first_call(self, prompts: Sequence[str], tokens: tuple[int, int] | None) -> dict[str, Any]:
        pipeline = copy.copy(self.pipeline)
        pipeline.set_progress_bar_config(disable=True)
        takes = inspect.signature(pipeline.__call__).parameters
        options = {"prompt": list(prompts), **ONE_STEP, "generator": torch.Generator().manual_seed(0)}
        if "mask_image" in takes:
            options |= {"image": torch.zeros(len(prompts), 3, *self._side), "height": self._side[0]}
            options |= {"mask_image": torch.ones(len(prompts), 1, *self._side), "width": self._side[1]}
        if tokens is not None:  # a mask is as long as the picture has tokens
            options |= dict(zip(("height", "width"), (2 * self._scale * t for t in tokens), strict=True))
        hook = self.model.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                pipeline(**{k: v for k, v in options.items() if k in takes})
        except _Called as call:
            return dict(inspect.signature(self.model.forward).bind_partial(*call.args, **call.kwargs).arguments)
        except (TypeError, ValueError, RuntimeError, AttributeError, ImportError, LookupError) as e:
            raise InputsError(
                f"{type(self.pipeline).__name__} could not be called with a prompt ({type(e).__name__}: {e})"
            ) from e
        finally:
            hook.remove()
        raise InputsError(f"{type(self.pipeline).__name__} never called its {type(self.model).__name__}")

    @property
    def _side(self) -> tuple[int, int]:
        return self.task.image[-2] * self._scale, self.task.image[-1] * self._scale

    @property
    def _scale(self) -> int:
        return int(getattr(self.pipeline, "vae_scale_factor", 8))

    def prepare(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A user's batch with pixels encoded to latents, and texts to conditions."""
        out = dict(batch)
        name, tokens = next((k for k in IMAGES if k in out), None), None
        if name is not None and self._are_pixels(out[name]):
            out[name] = self.latents(out[name])
            if self.packed:
                tokens = (out[name].shape[-2] // 2, out[name].shape[-1] // 2)
                ids = grid(*tokens).to(*place(self.model))
                out["conditions"] = {"img_ids": ids, **out.get("conditions", {})}
                out[name] = self._tokens(out[name])
        text = next((k for k in TEXTS if k in out), None)
        if text is not None and self.read_text:
            held = out.pop(text)
            out["conditions"] = {
                **self.conditions([held] if isinstance(held, str) else held, tokens),
                **out.get("conditions", {}),
            }
        return out

    @property
    def _vae(self) -> Any:
        return getattr(self.pipeline, "vae", None) or getattr(self.pipeline, "vqvae", None)

    def _are_pixels(self, images: Any) -> bool:
        """Images that fit the encoder, and are no latents: of other channels, or larger."""
        vae = self._vae
        if not isinstance(images, Tensor) or images.dim() != 4 or vae is None:
            return False
        if len(self.task.image) != 3 and not self.packed:
            return False
        other = self.packed or images.shape[1] != self.task.image[0] or images.shape[2] > self.task.image[1]
        return other and images.is_floating_point() and images.shape[1] == vae.config.get("in_channels")

    @property
    def packed(self) -> bool:
        """Whether the pipeline makes tokens of latents, two by two in each, and the denoiser is told where they lie."""
        return len(self.task.image) == 2 and self._pack is not None

    @property
    def _pack(self) -> Callable[..., Tensor] | None:
        found = getattr(self.pipeline, "_pack_latents", None)
        return found if found is not None and tuple(inspect.signature(found).parameters) == PACKS else None

    def _tokens(self, latents: Tensor) -> Tensor:
        """(n, C, H, W) as (n, H/2 · W/2, 4 C), by the pipeline's own method.

        Raises:
            InputsError: a side is odd.
        """
        n, channels, height, width = latents.shape
        if height % 2 or width % 2:
            raise InputsError(
                f"images whose latents are {height} by {width} cannot be packed two by two: give them sides that are "
                f"multiples of {2 * self._scale}"
            )
        pack = self._pack
        assert pack is not None
        return pack(latents, n, channels, height, width)

    def latents(self, images: Tensor) -> Tensor:
        """Latents of images (n, C, H, W) in [-1, 1], at the mode, scaled as the denoiser was trained with them."""
        vae = self._vae
        with torch.no_grad():
            z = encoded(vae, images.to(*place(vae)))
        shift, scale = (vae.config.get(k) for k in ("shift_factor", "scaling_factor"))
        return (z - (shift or 0.0)) * (scale or 1.0)


def grid(rows: int, columns: int) -> Tensor:
    """(0, row, column) of each token of a picture, row by row, (rows · columns, 3)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3)


def encoded(autoencoder: Any, images: Tensor) -> Tensor:
    """The latents that an autoencoder of diffusers gives images, unscaled; of a distribution the mode."""
    answer = autoencoder.encode(images)
    found: Tensor | None = getattr(answer, "latents", getattr(answer, "latent", None))
    return answer.latent_dist.mode() if found is None else found


class _Called(Exception):  # no error: it ends a pipeline's call
    """Carries what a module was called with."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Called(args, kwargs)


def _is_data(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)
