"""Tiny local folders of every family that a shell command takes: models as their libraries write them, and data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from plugins import install_by_hand

import fxprune

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
ENTRY = re.compile(r'^variance = "(.*)"$', re.MULTILINE)
CNN = "timm:test_resnet"  # for timm:resnet18, which would take its time

WORDS = ["[UNK]", "[MASK]", "[PAD]", "a", "cat", "dog", "sat", "on", "the", "mat"]
TEXT = "the cat sat on the mat a dog sat on the cat\n" * 20


def tokenizer() -> Any:
    """A tokenizer of ten words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", mask_token="[MASK]", pad_token="[PAD]")


def llama(folder: Path) -> Path:
    """A decoder with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 32}
    config = LlamaConfig(**sizes, vocab_size=len(WORDS), num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """A masked language model with its tokenizer."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 32}
    BertForMaskedLM(BertConfig(**sizes, vocab_size=len(WORDS), num_attention_heads=4)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def vit(folder: Path) -> Path:
    """A classifier of images of transformers, whose classes are called b and a."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = {"id2label": {0: "b", 1: "a"}, "label2id": {"b": 0, "a": 1}}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, **names)).save_pretrained(folder)
    return folder


def timm_cnn(folder: Path) -> Path:
    """A small CNN of timm, as it writes models for the hub."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    timm.models.save_for_hf(model, str(folder), model_config={}, safe_serialization=True)
    return folder


def ddpm(folder: Path) -> Path:
    """A pixel diffusion pipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from saved_nets import tiny_unet

    torch.manual_seed(0)
    DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    return folder


def pictures(folder: Path, n: int = 3) -> Path:
    """Images in sub-folders a and b, each with its caption beside it."""
    for name in "ab":
        (inner := folder / name).mkdir(parents=True)
        for k in range(n):
            Image.effect_noise((20 + k, 16), 50).convert("RGB").save(inner / f"{k}.png")
            (inner / f"{k}.txt").write_text(f"a {('cat', 'dog')[k % 2]} in {name}")
    return folder


def text(file: Path) -> Path:
    """A text of the tokenizer's words."""
    file.write_text(TEXT)
    return file


def world(folder: Path) -> None:
    """What README and docs/cli.md speak of, under the paths that they call it by."""
    from diffusion_nets import PIPELINES, model

    case = PIPELINES["sd1"]
    case.around(model(case.net)).save_pretrained(folder / "path/to/stable-diffusion")
    ddpm(folder / "path/to/a/ddpm")
    llama(folder / "path/to/llama")
    pictures(folder / "path/to/images", 2)
    text(folder / "path/to/text.txt")
    net = fxprune.open_model(CNN, weights="random", arguments={"num_classes": 2})
    torch.save(net.state_dict(), folder / "path/to/mine.pth")


def plugin(folder: Path) -> Path:
    """The example plugin, as an installation leaves it behind."""
    folder.mkdir()
    shutil.copy(PLUGIN / "fxprune_example.py", folder)
    entry = ENTRY.search((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))
    assert entry
    install_by_hand(folder, "fxprune-example-plugin", f"[fxprune.criteria]\nvariance = {entry[1]}\n")
    return folder
