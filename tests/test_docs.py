"""The Python in README and docs runs as it stands: page by page, with small stand-ins for the reader's own things."""

from __future__ import annotations

import re
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import Any

import clockwork
import pytest
import small_folders
import torch
import torch.nn.utils.prune
from depthnets import Transformer
from safetensors.torch import save_file
from torch import nn

import fxprune
from fxprune.adapter import find_adapter

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from diffusers import ControlNetModel
from diffusion_nets import PIPELINES, model

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

# Real sizes, and what stands for them here.
SMALLER = {
    "steps=2000": "steps=20",
    "after=500": "after=2",
    "warmup=100": "warmup=2",
    "3.4e9": "3e5",
    'log_with="tensorboard",': "",
    "timm:resnet18": small_folders.CNN,
}


def pipeline(name: str) -> Any:
    case = PIPELINES[name]
    return case.around(model(case.net))


def diffusion() -> dict[str, Any]:
    """A UNet in its pipeline, batches with their loss, and the parts of a training loop."""
    pipe = pipeline("ddpm")
    net, (batches, loss) = pipe.unet, fxprune.calibration(pipe, samples=4)
    graph = fxprune.trace(net)
    return {
        "pipeline": pipe,
        "model": net,
        "batches": batches,
        "loader": [torch.randn(2, 3, 16, 16)] * 30,
        "loss": loss,
        "optimizer": torch.optim.AdamW(net.parameters(), 1e-5),
        "ema": None,
        "ema_model": deepcopy(net),
        "batch": {"sample": torch.randn(2, 3, 16, 16), "timestep": torch.tensor([10, 20])},
        "other": fxprune.plan(graph, fxprune.score(graph, net, "random"), 0.2),
    }


def classifier() -> dict[str, Any]:
    """A small classifier, with batches of images and labels."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.AvgPool2d(14), nn.Flatten())
    x = torch.randn(2, 3, 16, 16)
    batches = [(x, torch.tensor([0, 3]))] * 2
    criterion = nn.CrossEntropyLoss()
    return {
        "net": net,
        "x": x,
        "batches": batches,
        "criterion": criterion,
        "loss": lambda net, batch: criterion(net(batch[0]), batch[1]),
    }


def text_to_image() -> dict[str, Any]:
    """Batches and inputs of a Stable Diffusion, and what was trained for it: a LoRA, a ControlNet."""
    pipe = pipeline("sd1")
    batches, loss = fxprune.calibration(pipe, samples=2)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = pipe.unet.get_submodule(layer.removeprefix("unet.")).weight.shape[0]
    lora = {f"{layer}.lora_A.weight": torch.ones(2, width), f"{layer}.lora_B.weight": torch.ones(width, 2)}
    save_file(lora, "style.safetensors")
    ControlNetModel.from_unet(pipe.unet).save_pretrained("path/to/a/controlnet")
    return {"batches": batches, "loss": loss, "inputs": dict(find_adapter(pipe.unet).example_inputs(pipe.unet))}


def saved() -> dict[str, Any]:
    """A pruned UNet, the pipeline around it, and the averaged weights of its dense model."""
    given = diffusion()
    pipe = fxprune.prune(given["pipeline"], "magnitude", 0.3)
    net, masked = Named(), Named()
    torch.nn.utils.prune.ln_structured(masked.conv1, "weight", amount=0.25, n=1, dim=0)
    more = {"model": net, "masked": masked, "example_inputs": torch.randn(2, 3, 8, 8)}
    return {"small": pipe.unet, "pipeline": pipe, "ema": given["ema_model"], **more}


class Named(nn.Module):
    """Layers called as the page calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, bias=False)
        self.layer1 = nn.Sequential(nn.Sequential(OrderedDict(conv1=nn.Conv2d(24, 24, 3))))
        self.fc = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer1(self.conv1(x).relu()).relu().mean((2, 3)))


def depth() -> dict[str, Any]:
    """A small transformer."""
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5)
    batches = [torch.randn(2, 7, 5) for _ in range(4)]
    return {"net": Transformer().eval(), "x": x, "batches": batches, "loss": lambda net, x: net(x).square().mean()}


GIVEN = {
    "docs/depth.md": depth,
    "README.md": lambda: diffusion() | classifier(),
    "docs/criteria.md": lambda: {"model": (given := classifier())["net"], **given},
    "docs/diffusion.md": text_to_image,
    "docs/saving.md": saved,
}


def blocks(page: str) -> str:
    """The page's Python with everything else as empty lines, so that line numbers stay the page's."""
    text = (ROOT / page).read_text(encoding="utf-8")
    out, end = "", 0
    for found in BLOCK.finditer(text):
        out += "\n" * text.count("\n", end, found.start(1)) + found[1]
        end = found.end(1)
    return out


PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)])
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))
    clockwork.install(monkeypatch)  # how much of a stand-in's time can go differs from processor to processor
    if page == "README.md":
        monkeypatch.syspath_prepend(small_folders.plugin(tmp_path / "plugin"))
        small_folders.world(tmp_path)
    pipeline("ddpm").save_pretrained("path/to/a/ddpm")
    pipeline("sd1").save_pretrained("path/to/stable-diffusion")
    code = blocks(page)
    for real, small in SMALLER.items():
        code = code.replace(real, small)
    names = {"fxprune": fxprune, "torch": torch, "path": "path/to/a/ddpm/unet"} | GIVEN.get(page, diffusion)()
    exec(compile(code, page, "exec"), names)
