"""What stock shapes allow, and what they cost: the tables of docs/stock.md.

    python benchmarks/stock.py classes [NAME ...]     steps, and what is achieved of 20, 40 and 60 %, of small models
    python benchmarks/stock.py trained [NAME ...]     the loss right after the cut, stock against free widths

Models of the first table have random weights; its figures are of shapes alone.  The second takes the trained networks
of `quality/subjects.py` (digits, ddpm, ldm, dit, classifier), criterion magnitude, and their loss on held-out images.
Rows go to the terminal as Markdown, as soon as each is known.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import timm
import torch
import torchvision
import transformers
from torch import nn

import fxprune
from fxprune.adapter import find_adapter
from fxprune.stock.instance import Asked
from fxprune.stock.narrowing import NEAR, narrowing, oracle_of

sys.path.insert(0, str(Path(__file__).parent / "quality"))
from subjects import subject

RATIOS = (0.2, 0.4, 0.6)
TEXT: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 12, "vocab_size": 100,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 12, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
PATCHED: dict[str, Any] = {"sample_size": 8, "patch_size": 2, "in_channels": 4}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
CROSS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
CROSS |= {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
TIMED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}


def text(model: Any, config: Any, **more: Any) -> Callable[[], nn.Module]:
    """A model of transformers."""
    return lambda: model(config(**{**TEXT, **more}))


CLASSES: dict[str, Callable[[], nn.Module]] = {
    "UNet2DModel": lambda: diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=DOWN, up_block_types=UP, attention_head_dim=None,
    ),
    "UNet2DConditionModel (SD 1.5)": lambda: diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 128, 128), cross_attention_dim=48, attention_head_dim=4,
        norm_num_groups=8, layers_per_block=1,
    ),
    "UNet2DConditionModel (SDXL)": lambda: diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 128), cross_attention_dim=64, attention_head_dim=(2, 4, 8),
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True, norm_num_groups=8, layers_per_block=1,
        **CROSS, **TIMED,
    ),
    "AutoencoderKL": lambda: diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ),
    "DiTTransformer2DModel": lambda: diffusers.DiTTransformer2DModel(
        **PATCHED, num_layers=10, num_attention_heads=4, attention_head_dim=16, out_channels=8, num_embeds_ada_norm=10
    ),
    "PixArtTransformer2DModel": lambda: diffusers.PixArtTransformer2DModel(
        **PATCHED, num_layers=10, num_attention_heads=4, attention_head_dim=16, out_channels=8, cross_attention_dim=64,
        caption_channels=32, interpolation_scale=1, use_additional_conditions=False,
    ),
    "SD3Transformer2DModel": lambda: diffusers.SD3Transformer2DModel(
        **PATCHED, num_layers=6, num_attention_heads=12, attention_head_dim=8, joint_attention_dim=32,
        caption_projection_dim=96, pooled_projection_dim=48, out_channels=4, pos_embed_max_size=8,
    ),
    "FluxTransformer2DModel": lambda: diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=12,
        joint_attention_dim=32, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6),
    ),
    "LlamaForCausalLM": text(transformers.LlamaForCausalLM, transformers.LlamaConfig, num_key_value_heads=4),
    "Qwen2ForCausalLM": text(transformers.Qwen2ForCausalLM, transformers.Qwen2Config, num_key_value_heads=4),
    "Qwen3ForCausalLM": text(
        transformers.Qwen3ForCausalLM, transformers.Qwen3Config, num_key_value_heads=4, head_dim=16
    ),
    "BertModel": text(transformers.BertModel, transformers.BertConfig),
    "BertForMaskedLM": text(transformers.BertForMaskedLM, transformers.BertConfig),
    "ViTForImageClassification": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VISION)),
    "CLIPModel": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(text_config=dict(TEXT), vision_config=dict(VISION), projection_dim=64)
    ),
    "T5ForConditionalGeneration": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=96, d_kv=16, d_ff=256, num_layers=2, num_heads=6, vocab_size=100, decoder_start_token_id=0
        )
    ),
    "timm vit_tiny_patch16_224": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, depth=4, embed_dim=192, num_heads=12
    ),
    "timm resnet50": lambda: timm.create_model("resnet50", num_classes=10, layers=[1, 1, 1, 1]),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto", num_classes=10),
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=10),
    "torchvision resnet50": lambda: torchvision.models.resnet50(num_classes=10),
    "torchvision VisionTransformer": lambda: torchvision.models.VisionTransformer(
        32, 8, 4, 12, 192, 768, num_classes=10
    ),
}  # fmt: skip
TRAINED = ("digits", "ddpm", "ldm", "dit", "classifier")


def inputs(net: nn.Module) -> Any:
    """Small images for the classifiers of timm and torchvision; None: the family knows."""
    library = type(net).__module__.partition(".")[0]
    small = torch.randn(1, 3, 64, 64) if hasattr(net, "layer1") or hasattr(net, "stages") else torch.randn(1, 3, 32, 32)
    return small if library in ("timm", "torchvision") else None


def cut(net: nn.Module, ratio: float, **options: Any) -> Any:
    """The pruned model; or the error in its place."""
    try:
        given = {"example_inputs": inputs(net), "progress": False, **options}
        return fxprune.prune(net, "magnitude", ratio, **given)
    except fxprune.FxPruneError as e:
        return e


def achieved(small: Any) -> str:
    """The share that went, in percent; a dash where nothing could."""
    return "–" if isinstance(small, Exception) else f"{100 * fxprune.report(small).plan.achieved:.1f}"


def found(net: nn.Module) -> tuple[tuple[str, ...], list[str]]:
    """The entries of a constructor, looked for once, and the widths nearest to each ratio.

    As `prune` has them, but without its last resort, whole layers.
    """
    adapter = find_adapter(net)
    constructor = adapter.constructor(net)
    limits = fxprune.Limits(ignore=adapter.protect(net), nearest=True)
    for attention in ("heads", "head_dim"):
        graph = fxprune.trace(net, inputs(net), attention=attention)
        scores = fxprune.score(graph, net, "magnitude")
        asked = Asked(RATIOS[0], "params", "magnitude", dict(scores.values))
        made = narrowing(net, oracle_of(net, constructor, graph), asked, limits, knapsack=True)
        cuts = [replace(made, asked=replace(asked, ratio=ratio)).nearest() for ratio in RATIOS]
        shares = [c.plan.achieved for c in cuts]
        if any(abs(s - r) <= NEAR for s, r in zip(shares, RATIOS, strict=True)):
            break
    return tuple(map(str, made.ties.ties)), [f"{s:.1%}" for s in shares]


def quoted(step: str) -> str:
    """An entry with its name as code."""
    name, _, rest = step.partition(" ")
    return f"`{name}` {rest}".rstrip()


def classes(names: list[str]) -> None:
    """The first table."""
    print("| class | entries (step of value) | achieved of 20 / 40 / 60 % |\n|---|---|---|", flush=True)
    for name in names or CLASSES:
        torch.manual_seed(0)
        net = CLASSES[name]().eval()
        steps, shares = found(net)
        told = "; ".join(" + ".join(map(quoted, step.split(" + "))) for step in steps)
        print(f"| {name} | {told or 'none'} | {' / '.join(shares)} |", flush=True)


def trained(names: list[str]) -> None:
    """The second table."""
    print("| network | asked | stock: gone, loss | free: gone, loss | dense |\n|---|---|---|---|---|", flush=True)
    for name in names or TRAINED:
        given = subject(name)
        net = copy.deepcopy(given.net).float().eval()
        for ratio in RATIOS:
            own = {} if given.example is None else {"example_inputs": given.example}
            stock = cut(net, ratio, shape="stock", nearest=True, **own)
            gone = ratio if isinstance(stock, Exception) else fxprune.report(stock).plan.achieved
            both = (stock, cut(net, gone, **own))
            cells = [
                f"{achieved(m)} %, {given.figures(m)['loss']:.4f}" if isinstance(m, nn.Module) else "–" for m in both
            ]
            dense = given.figures(net)["loss"]
            print(f"| {name} | {ratio:.0%} | {cells[0]} | {cells[1]} | {dense:.4f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()
    {"classes": classes, "trained": trained}[sys.argv[1]](sys.argv[2:])
