"""What an autoencoder needs to be scored without data: images that it decodes itself, and the reconstruction loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.adapters.denoising import CHUNK, IMAGES
from fxprune.adapters.encoding import encoded
from fxprune.adapters.tensors import draw, place
from fxprune.errors import InputsError
from fxprune.graph.modules import evaluating


@dataclass(frozen=True)
class Autoencoder:
    """How to call an autoencoder: `forward(sample)` gives the reconstruction.

    Attributes:
        image: shape (C, H, W) of one image.
    """

    image: tuple[int, ...]

    def example_inputs(self, model: nn.Module) -> dict[str, Any]:
        """Keyword arguments for a batch of one."""
        return {"sample": draw(model, (1, *self.image), torch.Generator().manual_seed(0))}

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean squared error of the reconstruction, in float32, and a codebook's own loss; latents are not drawn.

        It goes through `encode` and `decode`, since AutoencoderTiny's forward rounds between them and has no gradient.

        Args:
            batch: images (n, C, H, W) in [-1, 1], alone, first of a tuple, or in a dict.

        Raises:
            InputsError: the batch holds no images of such a shape.
        """
        images = next((batch[k] for k in IMAGES if k in batch), None) if isinstance(batch, Mapping) else batch
        images = images[0] if isinstance(images, (tuple, list)) else images
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != self.image[0]:
            raise InputsError(
                f"a batch for {type(model).__name__} must hold images of shape (n, {self.image[0]}, height, width) in "
                f"[-1, 1], as a tensor or in a dict under one of {', '.join(IMAGES)}"
            )
        images = images.to(*place(model))
        answer: Any = model.decode(encoded(model, images))  # type: ignore[operator]
        error = nn.functional.mse_loss(answer.sample.float(), images.float())
        commitment = getattr(answer, "commit_loss", None)
        return error if commitment is None else error + commitment.float().mean()

    def calibration(self, model: nn.Module, n: int, seed: int) -> list[dict[str, Tensor]]:
        """n images that the model decodes from standard normal latents, in small batches."""
        generator = torch.Generator().manual_seed(seed)
        config: Any = model.config
        scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
        batches = []
        with torch.no_grad(), evaluating(model):
            shape = encoded(model, draw(model, (1, *self.image), generator)).shape[1:]
            for first in range(0, n, CHUNK):
                z = draw(model, (min(CHUNK, n - first), *shape), generator)
                batches.append({"images": model.decode(z / scale + shift).sample})  # type: ignore[operator]
        return batches
