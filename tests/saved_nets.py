"""Small networks that the tests of saving share with the new processes they start."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune.saving.save import load


class Plain(nn.Module):
    """What a diffusers model need not have: tied weights, a sliced non-persistent buffer, an integer in a view."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(20, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.linspace(1, 2, width), persistent=False)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.scale
        h = torch.relu(self.up(x)).view(*ids.shape, self.heads, -1).softmax(-1).flatten(2)
        return self.head(self.norm(x + self.down(h)))


IDS = torch.arange(12).view(2, 6)


def tiny_unet() -> Any:
    """A UNet2DModel of 177 thousand parameters."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
    )


def unet_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, 8, 8, generator=generator), torch.tensor([3, 500])


def everything(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """All tensors of a model by all their names, and its output, as contiguous copies."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        out = model(*inputs)
    named[" out"] = out if isinstance(out, Tensor) else out.sample
    return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in named.items()}


def main(root: Path) -> None:
    """In a new process: load what the test saved, and write down what it finds."""
    unet = load(root / "unet")
    assert fxprune.report(unet).plan.achieved > 0.2
    save_file(everything(unet, *unet_inputs()), root / "unet.out")
    save_file(everything(load(root / "plain", model=Plain), IDS), root / "plain.out")
    save_file(everything(load(root / "pipeline").unet, *unet_inputs()), root / "pipeline.out")


def found(root: Path, name: str) -> dict[str, Tensor]:
    """What `main` wrote down."""
    return load_file(root / f"{name}.out")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    main(Path(sys.argv[1]))
