"""`fxprune prune --shape stock`: a folder that diffusers reads alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from typer.testing import CliRunner

from fxprune.cli import app


def folder_of(root: Path) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(root / "given")
    return root / "given"


def test_a_pipeline_is_saved_by_its_library(tmp_path: Path) -> None:
    given, out = folder_of(tmp_path), tmp_path / "out"
    options = ["--ratio", "0.4", "--criterion", "magnitude", "--shape", "stock", "--nearest", "--quiet"]
    result = CliRunner().invoke(app, ["prune", str(given), "-o", str(out), *options])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "block_out_channels[1]" in result.output
    assert not list(out.rglob("fxprune.json"))
    small = DDPMPipeline.from_pretrained(out, local_files_only=True).unet
    dense = DDPMPipeline.from_pretrained(given, local_files_only=True).unet
    gone = 1 - sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in dense.parameters())
    assert gone == pytest.approx(0.4, abs=0.1)
    assert small.config.block_out_channels[1] < 16


def test_an_unknown_shape_is_told(tmp_path: Path) -> None:
    given = folder_of(tmp_path)
    options = ["--criterion", "magnitude", "--shape", "round", "--quiet"]
    result = CliRunner().invoke(app, ["prune", str(given), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code != 0
    assert "stock" in result.output + str(result.stderr)
