"""Small diffusion models and real pipelines around them, shared by tests and the new processes they start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import fxprune
from fxprune.adapter import find_adapter
from fxprune.graph.modules import as_inputs

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "photo",
    "painting",
    "drawing",
    "cat",
    "dog",
    "house",
    "tree",
    "mountain",
    "car",
    "red",
]
UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
SD = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
SDXL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
    "cross_attention_dim": 64,
}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 16,
}
DIT = {"num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "num_layers": 2, "patch_size": 2}
PIXART = DIT | {"sample_size": 8, "out_channels": 8, "cross_attention_dim": 48, "caption_channels": 32}
SD3 = DIT | {
    "sample_size": 8,
    "joint_attention_dim": 64,
    "caption_projection_dim": 48,
    "pooled_projection_dim": 64,
    "out_channels": 4,
    "pos_embed_max_size": 8,
}
FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ddpm": lambda: diffusers.UNet2DModel(**UNET),
    "ddpm-classes": lambda: diffusers.UNet2DModel(**UNET, num_class_embeds=10),
    "sd1": lambda: diffusers.UNet2DConditionModel(**SD),
    "sd2": lambda: diffusers.UNet2DConditionModel(**SD, use_linear_projection=True),
    "sdxl": lambda: diffusers.UNet2DConditionModel(**SD | SDXL),
    "sd-inpaint": lambda: diffusers.UNet2DConditionModel(**SD | {"in_channels": 9}),
    "sd-classes": lambda: diffusers.UNet2DConditionModel(**SD, num_class_embeds=10),
    "ldm": lambda: diffusers.UNet2DModel(**UNET | {"sample_size": 8}),
    "vae": lambda: diffusers.AutoencoderKL(**VAE, shift_factor=0.1),
    "vq": lambda: diffusers.VQModel(**VAE | {"latent_channels": 3}, num_vq_embeddings=16),
    "tiny-vae": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(32, 32), decoder_block_out_channels=(32, 32), num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ),
    "dit": lambda: diffusers.DiTTransformer2DModel(
        **DIT, sample_size=8, out_channels=8, num_embeds_ada_norm=1000, norm_type="ada_norm_zero"
    ),
    "pixart": lambda: diffusers.PixArtTransformer2DModel(**PIXART),
    "sd3": lambda: diffusers.SD3Transformer2DModel(**SD3),
    "flux": lambda: diffusers.FluxTransformer2DModel(**FLUX),
    "sana": lambda: diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=4, cross_attention_head_dim=12, cross_attention_dim=48, caption_channels=32,
        sample_size=8,
    ),
    "aura": lambda: diffusers.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=64, pos_embed_max_size=16,
    ),
}  # fmt: skip


def model(name: str) -> Any:
    """A model of the table with random weights: no zero-initialised layer or unit norm hides anything."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MODELS[name]()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.02 * torch.randn(p.shape))
    return net.eval()


def smaller(net: Any) -> Any:
    """A model less 40 %, by magnitude."""
    options: dict[str, Any] = {}
    if isinstance(net, diffusers.AutoencoderTiny):
        plain = fxprune.prune(net, "magnitude", 0.4, verify=False, progress=False)
        options["example_inputs"] = {"sample": steady_images(plain, 1)}
    return fxprune.prune(net, "magnitude", 0.4, progress=False, **options)


def steady_images(net: Any, n: int) -> Tensor:
    """Images on which an AutoencoderTiny is a continuous function: (n, 3, 8, 8).

    Its forward rounds latents to bytes.  One that lies at the edge of two bytes falls to this side or that by the last
    bit, which differs from kernel to kernel, and the images are then visibly others.
    """
    found: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    while len(found) < n:
        image = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
        with torch.no_grad():
            latents = 255 * net.scale_latents(net.encode(image).latents)
        from_edge = (latents - latents.floor() - 0.5).abs()  # 0 at the edge, 0.5 at a byte; float noise is about 1e-5
        if from_edge.min() > 0.01:
            found.append(image)
    return torch.cat(found)


# ---- pipelines ------------------------------------------------------------------------------------------------------

CLIP = {
    "vocab_size": len(WORDS) * 2 + 2, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 77, "projection_dim": 32, "bos_token_id": len(WORDS) * 2,
    "eos_token_id": len(WORDS) * 2 + 1, "pad_token_id": len(WORDS) * 2 + 1,
}  # fmt: skip
T5 = {"vocab_size": len(WORDS) + 3, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 1, "num_heads": 4}


def clip_tokenizer() -> Any:
    """A vocabulary of letters and no merges would do; words are shorter."""
    words = [w + end for w in WORDS for end in ("</w>", "")]
    vocab = {w: i for i, w in enumerate((*words, "<|startoftext|>", "<|endoftext|>"))}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{w}", -1.0) for w in WORDS)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


def clip_encoder(projected: bool = False) -> Any:
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**CLIP)).eval()


def t5_encoder() -> Any:
    return transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()


def _ddpm(kind: str) -> Callable[[Any], Any]:
    return lambda net: getattr(diffusers, kind)(unet=net, scheduler=diffusers.DDIMScheduler(num_train_timesteps=50))


def _sd(kind: str = "StableDiffusionPipeline", **scheduler: Any) -> Callable[[Any], Any]:
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return lambda net: getattr(diffusers, kind)(
        vae=model("vae"), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), unet=net,
        scheduler=diffusers.DDIMScheduler(**{"clip_sample": False, "steps_offset": 1, **scheduler}), **options,
    )  # fmt: skip


def _sdxl(net: Any) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=model("vae"), text_encoder=clip_encoder(), text_encoder_2=clip_encoder(projected=True), unet=net,
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )  # fmt: skip


def _sd3(net: Any) -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=model("vae"),
        text_encoder=clip_encoder(projected=True), tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(),
        text_encoder_2=clip_encoder(projected=True), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def _flux(net: Any) -> Any:
    return diffusers.FluxPipeline(
        transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=model("vae"),
        text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def _pixart(net: Any) -> Any:
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5_encoder(), vae=model("vae"), transformer=net,
        scheduler=diffusers.DDIMScheduler(),
    )  # fmt: skip


TEXT = {"prompt": "a photo of a cat", "negative_prompt": ""}
SHORT = {"num_inference_steps": 2, "output_type": "np"}


@dataclass(frozen=True)
class Case:
    """A pipeline around a model of the table, how to call it, and the shape of its image."""

    net: str
    around: Callable[[Any], Any]
    call: dict[str, Any] = field(default_factory=dict)
    image: tuple[int, ...] = (1, 16, 16, 3)

    def images(self, pipeline: Any) -> Any:
        """What the pipeline draws from a fixed seed: floats (n, H, W, 3)."""
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**SHORT, **self.call, generator=torch.Generator().manual_seed(0)).images


PIPELINES: dict[str, Case] = {
    "ddpm": Case("ddpm", _ddpm("DDPMPipeline")),
    "ddim": Case("ddpm", _ddpm("DDIMPipeline")),
    "ldm": Case("ldm", lambda net: diffusers.LDMPipeline(model("vq"), net, diffusers.DDIMScheduler())),
    "sd1": Case("sd1", _sd(), TEXT),
    "sd2": Case("sd2", _sd(prediction_type="v_prediction"), TEXT),
    "sdxl": Case("sdxl", _sdxl, TEXT),
    "sd-inpaint": Case(
        "sd-inpaint", _sd("StableDiffusionInpaintPipeline"),
        TEXT | {"image": torch.zeros(1, 3, 16, 16), "mask_image": torch.ones(1, 1, 16, 16), "height": 16, "width": 16},
    ),
    "dit": Case(
        "dit", lambda net: diffusers.DiTPipeline(net, model("vae"), diffusers.DDIMScheduler()), {"class_labels": [3]}
    ),
    "pixart": Case("pixart", _pixart, TEXT | {"clean_caption": False, "use_resolution_binning": False}),
    "sd3": Case("sd3", _sd3, TEXT),
    "flux": Case("flux", _flux, {"prompt": "a red car", "height": 16, "width": 16, "max_sequence_length": 16}),
}  # fmt: skip


# ---- in a new process -----------------------------------------------------------------------------------------------


def everything(given: Any, case: Case | None = None) -> dict[str, Tensor]:
    """All tensors of a model and its output; or those of a pipeline's denoiser and the images drawn with it."""
    net = find_adapter(given).unwrap(given)[0]
    named = {n: t.detach().clone() for n, t in net.state_dict().items()}
    if case is not None:
        return named | {" images": torch.from_numpy(case.images(given)).contiguous()}
    args, kwargs = as_inputs(find_adapter(net).example_inputs(net))
    with torch.no_grad():
        return named | {" out": net(*args, **kwargs, return_dict=False)[0].contiguous()}


def main(root: Path) -> None:
    """Load what a test saved, and write down what is found."""
    for folder in sorted((root / "models").iterdir()):
        save_file(everything(fxprune.load(folder)), root / f"model-{folder.name}.out")
    for folder in sorted((root / "pipelines").iterdir()):
        found = everything(fxprune.load_pipeline(folder), PIPELINES[folder.name])
        save_file(found, root / f"pipeline-{folder.name}.out")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    main(Path(sys.argv[1]))
