"""The whole way at Stable Diffusion 1.5's size, random weights: prune, save in shards, load elsewhere, draw, train.

    python benchmarks/real_size.py

Prints one JSON object.  Needs about 10 GiB of memory and 3 GB of disk for temporary files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fxprune
from fxprune.adapter import find_adapter

SIDE = 128  # pixels of the drawn image: real widths, few positions


def pipeline() -> Any:
    """Stable Diffusion 1.5's modules at their size; the tokenizer knows a few words."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    words = ["a</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    text = {"bos_token_id": 2, "eos_token_id": 3, "hidden_size": 768, "intermediate_size": 3072}
    text |= {"num_attention_heads": 12, "num_hidden_layers": 12}
    widths = (128, 256, 512, 512)
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
        ),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).eval(),
        tokenizer=transformers.CLIPTokenizer({w: i for i, w in enumerate(words)}, [], model_max_length=77),
        unet=diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def draw(pipe: Any) -> Any:
    """One image from a fixed seed, in two steps."""
    pipe.set_progress_bar_config(disable=True)
    options = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "output_type": "np"}
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **options).images


def trained(pipe: Any) -> bool:
    """Whether a training step lowers the loss on its own batch."""
    loss: Any = find_adapter(pipe).loss_of(pipe)
    batch = {"images": torch.randn(1, 4, SIDE // 8, SIDE // 8), "prompt": ["a cat"]}
    before = loss(pipe.unet, batch)
    before.backward()
    torch.optim.SGD(pipe.unet.parameters(), 1e-4).step()
    with torch.no_grad():
        return bool(loss(pipe.unet, batch) < before)


def main() -> None:
    """Run it; with a folder and a file: only load the folder and write down what is drawn."""
    if len(sys.argv) == 3:
        np.save(sys.argv[2], draw(fxprune.load_pipeline(sys.argv[1])))
        return
    start = time.perf_counter()
    pipe = pipeline()
    dense = sum(p.numel() for p in pipe.unet.parameters())
    small = fxprune.prune(pipe, "magnitude", 0.4, inplace=True, progress=False)
    told = fxprune.report(small)
    with tempfile.TemporaryDirectory() as root:
        folder = fxprune.save_pipeline(small, Path(root) / "small", max_shard_size="1GB")
        shards = len(list((folder / "unet").glob("model-*.safetensors")))
        image = draw(small)
        subprocess.run([sys.executable, __file__, str(folder), f"{root}/image.npy"], check=True)
        same = bool((np.load(f"{root}/image.npy") == image).all())
    result = {
        "dense": dense,
        "removed": 1 - sum(p.numel() for p in small.unet.parameters()) / dense,
        "check": str(told.checks[0]),
        "shards": shards,
        "image": image.shape,
        "same in a new process": same,
        "trains": trained(small),
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
