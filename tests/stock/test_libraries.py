"""Stock shapes of the libraries: what their own constructors make, their own save writes and their own load reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import fxprune
from fxprune.adapter import find_adapter

TEXT: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 6,
    "vocab_size": 40, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SD3: dict[str, Any] = {
    "sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 4,
    "num_attention_heads": 8, "joint_attention_dim": 16, "caption_projection_dim": 32, "pooled_projection_dim": 12,
    "pos_embed_max_size": 4,
}  # fmt: skip
PICTURE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

MODELS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: diffusers.UNet2DModel(**UNET),
    "sd3": lambda: diffusers.SD3Transformer2DModel(**SD3),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=2)),
    "timm": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=5, depth=1, embed_dim=24, num_heads=6
    ),
    "torchvision": lambda: torchvision.models.VisionTransformer(32, 8, 1, 6, 24, 96, num_classes=5),
}
INPUTS = {"timm": PICTURE, "torchvision": PICTURE}
# loads what libraries saved, in a process where fxprune cannot be imported
FRESH = """
import sys
sys.modules["fxprune"] = None
import importlib, torch
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    held = torch.load(folder / "held.pt", weights_only=False)
    library = importlib.import_module(held["by"])
    if held["by"] == "timm":
        net = library.create_model(f"local-dir:{folder}", pretrained=True)
    elif held["by"] == "torchvision":
        net = library.models.VisionTransformer(**held["config"])
        net.load_state_dict(torch.load(folder / "weights.pt"), strict=True)
    else:
        net = getattr(library, held["name"]).from_pretrained(folder, local_files_only=True)
    for name, tensor in held["state"].items():
        assert torch.equal(net.state_dict()[name], tensor), name
    with torch.no_grad():
        out = net.eval()(*held["args"], **held["kwargs"])
    torch.save(out if isinstance(out, torch.Tensor) else out[0], folder / "out.pt")
"""
SAVED = ("unet", "llama", "timm", "torchvision")


def small_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = MODELS[name]().eval()
    small: nn.Module = fxprune.prune(
        net, "magnitude", 0.4, shape="stock", example_inputs=INPUTS.get(name), progress=False
    )
    assert type(small) is type(net)
    gone = 1 - sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters())
    assert gone == pytest.approx(0.4, abs=0.04)
    assert all(check.ok for check in fxprune.report(small).checks)
    return small


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: small_of(name) for name in MODELS}


def called(name: str, net: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if name in INPUTS:
        return (INPUTS[name],), {}
    return (), find_adapter(net).example_inputs(net)  # type: ignore[return-value]


def first(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    return next(x for x in output.values() if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("name", MODELS)
def test_its_config_makes_it_again(name: str, models: dict[str, nn.Module]) -> None:
    small = models[name]
    constructor = find_adapter(small).constructor(small)
    assert constructor is not None
    made = constructor.build(dict(constructor.config)).eval()
    made.load_state_dict(small.state_dict(), strict=True)
    args, kwargs = called(name, small)
    with torch.no_grad():
        assert torch.equal(first(made(*args, **kwargs)), first(small(*args, **kwargs)))


def test_the_libraries_load_them_without_fxprune(models: dict[str, nn.Module], tmp_path: Path) -> None:
    for name in SAVED:
        _save(name, models[name], tmp_path / name)
    folders = [str(tmp_path / name) for name in SAVED]
    done = subprocess.run([sys.executable, "-c", FRESH, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in SAVED:
        args, kwargs = called(name, models[name])
        with torch.no_grad():
            mine = first(models[name](*args, **kwargs))
        theirs = torch.load(tmp_path / name / "out.pt")
        assert torch.allclose(theirs, mine, atol=1e-5 * float(mine.abs().max()), rtol=1e-4)


def _save(name: str, small: nn.Module, folder: Path) -> None:
    """By the library's own way, with what the other process is to compare."""
    args, kwargs = called(name, small)
    held: dict[str, Any] = {"by": type(small).__module__.partition(".")[0], "name": type(small).__name__}
    held |= {"args": args, "kwargs": kwargs, "state": small.state_dict()}
    if name == "timm":
        timm.models.save_for_hf(small, str(folder))
    elif name == "torchvision":
        folder.mkdir()
        torch.save(small.state_dict(), folder / "weights.pt")
        constructor = find_adapter(small).constructor(small)
        assert constructor is not None
        held["config"] = constructor.config
    else:
        small.save_pretrained(folder)  # type: ignore[operator]
    torch.save(held, folder / "held.pt")
