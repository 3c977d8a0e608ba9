"""A folder of images as batches to train a pixel diffusion model with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fxprune.adapter import find_adapter
from fxprune.errors import InputsError
from fxprune.graph.modules import as_inputs

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MODES = {1: "L", 3: "RGB"}
ENCODERS = ("vae", "vqvae", "movq")  # parts of a pipeline whose denoiser works on latents
IN_PYTHON = "train a latent model in Python, with fxprune.prune(..., data=latents and conditions)"


class Images(Dataset[Tensor]):
    """The images in a folder and its subfolders, in [-1, 1]: the largest centred part of the right shape, resized.

    Args:
        folder: where they are.
        shape: (channels, height, width); 1 channel is grey, 3 are colours.

    Raises:
        InputsError: there is no image, or images do not have so many channels.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.shape = shape
        if not self.files:
            raise InputsError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
        if shape[0] not in MODES:
            raise InputsError(f"the model takes {shape[0]} channels, which are not those of an image: {IN_PYTHON}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """One image, of `shape`."""
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        with Image.open(self.files[index]) as image:
            fitted = ImageOps.fit(image.convert(MODES[channels]), (width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(fitted, np.float32)).reshape(height, width, channels)
        return pixels.permute(2, 0, 1) / 127.5 - 1


def image_batches(model: Any, folder: Path, size: int) -> DataLoader[Tensor]:
    """Shuffled batches of the images in a folder, of the shape that a model (or a pipeline's) takes.

    Raises:
        InputsError: the folder holds no images, or the model takes none.
    """
    if found := [name for name in ENCODERS if getattr(model, name, None) is not None]:
        raise InputsError(f"this pipeline has a {found[0]}, so its denoiser takes no images: {IN_PYTHON}")
    net: nn.Module = find_adapter(model).unwrap(model)[0]
    args, kwargs = as_inputs(find_adapter(net).example_inputs(net))
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim() == 4]
    if len(tensors) != 1:
        raise InputsError(
            f"{type(net).__name__} does not take one image; train it in Python, with fxprune.prune(data=)"
        )
    _, channels, height, width = tensors[0].shape
    images = Images(folder, (channels, height, width))
    return DataLoader(images, min(size, len(images)), shuffle=True, drop_last=True)
