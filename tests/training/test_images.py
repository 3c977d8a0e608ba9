"""Batches of pictures in a folder, of the shape that a model takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from saved_nets import tiny_unet
from torch import nn

import fxprune
from fxprune.training.images import image_batches


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(5):
        Image.effect_noise((20 + k, 16), 50).save(tmp_path / f"{k}.png")
    return tmp_path


def test_batches_have_the_models_shape_and_the_last_small_one_is_left_out(folder: Path) -> None:
    assert [tuple(b.shape) for b in image_batches(tiny_unet(), folder, 2)] == [(2, 1, 8, 8)] * 2
    assert [tuple(b.shape) for b in image_batches(tiny_unet(), folder, 99)] == [(5, 1, 8, 8)]


def test_what_takes_no_image_is_refused(folder: Path) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(fxprune.FxPruneError):
        image_batches(layer, folder, 2)
    latent: Any = SimpleNamespace(vqvae=nn.Identity())
    with pytest.raises(fxprune.InputsError, match="this pipeline has a vqvae, so its denoiser takes no images"):
        image_batches(latent, folder, 2)
