"""Adapters: who recognises what, inputs that run, losses that are fixed functions, data that the model draws itself."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import registry
from fxprune.adapter import Adapter, find_adapter
from fxprune.adapters import denoising
from fxprune.adapters.ddpm import DDPMAdapter
from fxprune.adapters.noising import Flow, Noising, VariancePreserving, noising_of
from fxprune.errors import InputsError, SaveError
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs, evaluating
from fxprune.saving import stock
from fxprune.saving.describe import describe
from fxprune.scoring.score import score
from fxprune.scoring.timesteps import strata

diffusers = pytest.importorskip("diffusers")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

UNET = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SD = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68}
KANDINSKY = {
    "out_channels": 8,
    "addition_embed_type": "image",
    "encoder_hid_dim": 20,
    "encoder_hid_dim_type": "image_proj",
}
IF = {
    "encoder_hid_dim": 20,
    "class_embed_type": "timestep",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
}
VAE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "num_layers": 1,
    "sample_size": 8,
    "patch_size": 2,
}
PIXART = dict(DIT, out_channels=8, cross_attention_dim=24, caption_channels=12)
FLUX = {
    "in_channels": 8,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (4, 6, 6),
}
BERT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = dict(BERT, max_position_embeddings=32, projection_dim=16, bos_token_id=0, eos_token_id=2, pad_token_id=1)
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
WHISPER = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 20,
    "max_source_positions": 30,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@dataclass(frozen=True)
class Row:
    """A model, the adapter that must recognise it, and shapes of its example inputs by name (or by position)."""

    adapter: str
    build: Callable[[], nn.Module]
    shapes: dict[str | int, tuple[int, ...]]


def hf(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**options))


def clip() -> nn.Module:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=dict(VIT, projection_dim=16), projection_dim=16)
    model: nn.Module = transformers.CLIPModel(config)
    return model


LATENT, TOKENS, TIME = (1, 4, 8, 8), (1, 77, 12), (1,)
DIFFUSION: dict[str, Row] = {
    "ddpm": Row("ddpm", lambda: diffusers.UNet2DModel(**UNET), {"sample": (1, 3, 16, 16), "timestep": TIME}),
    "ddpm-classes": Row("ddpm", lambda: diffusers.UNet2DModel(**UNET, num_class_embeds=10), {"class_labels": (1,)}),
    "ddpm-no-size": Row("ddpm", lambda: diffusers.UNet2DModel(**{**UNET, "sample_size": None}), {}),
    "sd": Row("ldm", lambda: diffusers.UNet2DConditionModel(**SD), {"encoder_hidden_states": (1, 77, 24)}),
    "sdxl": Row(
        "ldm", lambda: diffusers.UNet2DConditionModel(**SD, **SDXL), {"sample": LATENT, "text_embeds": (1, 20)}
    ),
    "sd-inpaint": Row(
        "ldm", lambda: diffusers.UNet2DConditionModel(**{**SD, "in_channels": 9}), {"sample": (1, 9, 8, 8)}
    ),
    "sd-projection": Row(
        "ldm",
        lambda: diffusers.UNet2DConditionModel(
            **SD, class_embed_type="projection", projection_class_embeddings_input_dim=12
        ),
        {"class_labels": (1, 12)},
    ),
    "kandinsky": Row(
        "ldm",
        lambda: diffusers.UNet2DConditionModel(**{**SD, **KANDINSKY}),
        {"sample": LATENT, "image_embeds": (1, 20)},
    ),
    "if": Row(
        "ldm",
        lambda: diffusers.UNet2DConditionModel(**{**SD, **IF, "out_channels": 8}),
        {"encoder_hidden_states": (1, 77, 20), "class_labels": (1,)},
    ),
    "vae": Row("ldm", lambda: diffusers.AutoencoderKL(**VAE), {"sample": (1, 3, 32, 32)}),
    "vq": Row("ldm", lambda: diffusers.VQModel(**VAE, num_vq_embeddings=16), {"sample": (1, 3, 32, 32)}),
    "dit": Row("dit", lambda: diffusers.DiTTransformer2DModel(**DIT, num_embeds_ada_norm=10), {"class_labels": (1,)}),
    "pixart": Row(
        "dit",
        lambda: diffusers.PixArtTransformer2DModel(**PIXART),
        {"hidden_states": LATENT, "encoder_hidden_states": TOKENS},
    ),
    "pixart-sizes": Row(
        "dit",
        lambda: diffusers.PixArtTransformer2DModel(**PIXART, use_additional_conditions=True),
        {"resolution": (1, 2), "aspect_ratio": (1, 1)},
    ),
    "sd3": Row(
        "dit",
        lambda: diffusers.SD3Transformer2DModel(
            **DIT, joint_attention_dim=12, caption_projection_dim=24, pooled_projection_dim=10, out_channels=4
        ),
        {"hidden_states": LATENT, "encoder_hidden_states": TOKENS, "pooled_projections": (1, 10)},
    ),
    "flux": Row(
        "dit",
        lambda: diffusers.FluxTransformer2DModel(**FLUX, guidance_embeds=True),
        {"hidden_states": (1, 256, 8), "img_ids": (256, 3), "txt_ids": (77, 3), "guidance": (1,)},
    ),
    "aura": Row(
        "dit",
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pos_embed_max_size=16,
        ),
        {"hidden_states": LATENT, "encoder_hidden_states": TOKENS},
    ),
    "wan": Row(
        "dit",
        lambda: diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=12,
            freq_dim=16,
            ffn_dim=24,
            num_layers=1,
        ),
        {"hidden_states": (1, 4, 4, 32, 32)},
    ),
}
OTHERS: dict[str, Row] = {
    "timm-resnet": Row("timm", lambda: timm.create_model("resnet18"), {0: (1, 3, 224, 224)}),
    "timm-grey": Row("timm", lambda: timm.create_model("resnet18", in_chans=1), {0: (1, 1, 224, 224)}),
    "timm-vit-64": Row("timm", lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), {0: (1, 3, 64, 64)}),
    "tv-resnet": Row("torchvision", torchvision.models.resnet18, {0: (1, 3, 224, 224)}),
    "tv-vit": Row(
        "torchvision", lambda: torchvision.models.VisionTransformer(48, 16, 1, 2, 32, 32), {0: (1, 3, 48, 48)}
    ),
    "tv-segmentation": Row(
        "torchvision",
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None),
        {0: (1, 3, 224, 224)},
    ),
    "tv-video": Row("torchvision", torchvision.models.video.mc3_18, {0: (1, 3, 16, 112, 112)}),
    "hf-bert": Row("transformers", hf("BertModel", "BertConfig", **BERT), {"input_ids": (1, 16)}),
    "hf-vit": Row("transformers", hf("ViTModel", "ViTConfig", **VIT), {"pixel_values": (1, 3, 32, 32)}),
    "hf-gpt2": Row(
        "transformers",
        hf(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=99,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=1,
            eos_token_id=2,
        ),
        {"input_ids": (1, 16)},
    ),
    "hf-t5": Row(
        "transformers",
        hf("T5ForConditionalGeneration", "T5Config", **T5),
        {"input_ids": (1, 16), "decoder_input_ids": (1, 16)},
    ),
    "hf-clip": Row("transformers", clip, {"input_ids": (1, 16), "pixel_values": (1, 3, 32, 32)}),
    "hf-whisper": Row(
        "transformers",
        hf("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER),
        {"input_features": (1, 20, 60), "decoder_input_ids": (1, 16)},
    ),
}
ALL = {**DIFFUSION, **OTHERS}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def adapter_and_model(row: Row) -> tuple[Adapter, nn.Module]:
    model = row.build()
    adapter = find_adapter(model)
    assert type(adapter) is registry.get("adapters", row.adapter)
    return adapter, model.eval()


def flat(example: Any) -> dict[str | int, Tensor]:
    args, kwargs = as_inputs(example)
    named: dict[str | int, Any] = {**dict(enumerate(args)), **kwargs}
    named = {**named, **named.pop("added_cond_kwargs", {})}
    return {k: v for k, v in named.items() if isinstance(v, Tensor)}


# ---- laws over all models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_right_adapter_makes_inputs_that_run(name: str) -> None:
    adapter, model = adapter_and_model(ALL[name])
    example = adapter.example_inputs(model)
    shapes = {k: tuple(v.shape) for k, v in flat(example).items()}
    assert {k: shapes.get(k) for k in ALL[name].shapes} == ALL[name].shapes
    args, kwargs = as_inputs(example)
    with torch.no_grad():
        model(*args, **kwargs)
    again = flat(adapter.example_inputs(model))
    assert all(torch.equal(v, again[k]) for k, v in flat(example).items())
    assert kwargs.get("use_cache", False) is False


@pytest.mark.parametrize("name", ["ddpm-classes", "sdxl", "dit", "hf-bert"])
def test_the_inputs_trace_and_score(name: str) -> None:
    adapter, model = adapter_and_model(ALL[name])
    graph = analyse(model, as_inputs(adapter.example_inputs(model)))
    assert len(graph.groups) > 1
    score(graph, model, "magnitude")


@pytest.mark.parametrize("name", ["ddpm", "flux", "hf-bert", "hf-vit"])
def test_inputs_follow_the_models_dtype_and_device(name: str) -> None:
    adapter, model = adapter_and_model(ALL[name])
    half = flat(adapter.example_inputs(copy.deepcopy(model).bfloat16()))
    assert {v.dtype for v in half.values()} <= {torch.bfloat16, torch.int64}
    meta = flat(adapter.example_inputs(model.to("meta")))
    assert all(v.is_meta for v in meta.values())


@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith(("timm", "tv"))])
def test_build_makes_the_stock_model_again_with_real_buffers(name: str) -> None:
    _, model = adapter_and_model(ALL[name])
    built = stock.build(describe(model))
    assert type(built) is type(model)
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(p.is_meta for p in built.parameters())
    theirs = dict(model.named_buffers())
    assert all(torch.equal(b, theirs[n]) for n, b in built.named_buffers() if "freqs" not in n)


def test_build_runs_no_foreign_class() -> None:
    adapter, _ = adapter_and_model(ALL["hf-bert"])
    for foreign in ("os", "Tensor", "DDPMScheduler", "logging", None):
        with pytest.raises(SaveError, match="has no model class called"):
            adapter.build({"_class_name": foreign})
    with pytest.raises(SaveError, match="GenericAdapter cannot build a model"):
        find_adapter(nn.Linear(1, 1)).build({})


# ---- diffusion ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the text conditions of this")
@pytest.mark.parametrize("name", DIFFUSION)
def test_calibration_is_seeded_and_the_loss_a_fixed_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "STEPS", 2)
    adapter, model = adapter_and_model(DIFFUSION[name])
    model.train()
    random = torch.get_rng_state()
    batches = adapter.calibration(model, 5, seed=1)
    loss = adapter.loss_of(model)
    assert batches is not None
    assert loss is not None
    assert sum(len(b["images"]) for b in batches) == 5
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    again, other = adapter.calibration(model, 5, seed=1), adapter.calibration(model, 5, seed=2)
    assert again is not None
    assert other is not None
    with evaluating(model):
        values = [loss(model, b) for b in batches]
        assert all(torch.isfinite(v) and v.requires_grad and v.dim() == 0 for v in values)
        assert [v.item() for v in values] == [loss(model, b).item() for b in again]
        assert [v.item() for v in values] != [loss(model, b).item() for b in other]


def test_a_conditional_model_scores_with_gradflow_and_no_data() -> None:
    adapter, model = adapter_and_model(ALL["dit"])
    graph = analyse(model, as_inputs(adapter.example_inputs(model)))
    given: dict[str, Any] = {"data": adapter.calibration(model, 4), "loss": adapter.loss_of(model)}
    assert score(graph, model, "gradflow", **given) == score(graph, model, "gradflow", **given)


def test_a_progress_bar_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    adapter, model = adapter_and_model(ALL["ddpm"])
    adapter.calibration(model, 5)
    assert capsys.readouterr().out == ""
    adapter.calibration(model, 5, progress=True)
    assert "drawing calibration samples" in capsys.readouterr().out


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1


def test_users_batches_of_every_form_have_the_same_loss() -> None:
    adapter, model = adapter_and_model(ALL["ddpm"])
    loss = adapter.loss_of(model)
    assert loss is not None
    forms = [images(), (images(),), [images(), None], *({k: images()} for k in ("images", "pixel_values", "input"))]
    values = {loss(model, form).item() for form in forms}
    assert len(values) == 1
    assert loss(model, images().flip(0)).item() not in values  # other images, other noise
    seeded = adapter.loss_of(model, seed=1)
    assert seeded is not None
    assert seeded(model, images()).item() not in values


def test_noise_and_times_are_drawn_by_the_images_themselves() -> None:
    adapter, model = adapter_and_model(ALL["ddpm"])
    assert isinstance(adapter, DDPMAdapter)
    task = adapter.task(model)
    one, same, other = (task.complete(model, x, task.noising) for x in (images(), images(), -images()))
    for key in ("noise", "timestep"):
        assert torch.equal(one[key], same[key])
        assert not torch.equal(one[key], other[key])


def test_a_learned_variance_is_no_part_of_the_prediction() -> None:
    adapter, model = adapter_and_model(Row("ddpm", lambda: diffusers.UNet2DModel(**{**UNET, "out_channels": 6}), {}))
    assert isinstance(adapter, DDPMAdapter)
    task = adapter.task(model)
    full = task.complete(model, images(), task.noising)
    noisy = task.noising.noised(full["images"], full["noise"], full["timestep"])
    mean = model(noisy, full["timestep"]).sample[:, :3]
    assert torch.equal(adapter.loss_of(model)(model, images()), (mean - full["noise"]).square().mean())


def test_labels_come_with_the_images() -> None:
    adapter, model = adapter_and_model(ALL["ddpm-classes"])
    loss = adapter.loss_of(model)
    assert loss is not None
    labels = torch.tensor([1, 2, 3])
    forms = [(images(), labels), *({"images": images(), k: labels} for k in ("class_labels", "labels", "label"))]
    assert len({loss(model, form).item() for form in forms}) == 1
    assert loss(model, (images(), labels + 1)).item() != loss(model, forms[0]).item()


BAD_BATCHES: list[tuple[str, Any, str]] = [
    ("ddpm", "text", r"a batch for UNet2DModel has no images; give a tensor of shape \(n, 3, 16, 16\)"),
    ("ddpm", {"picture": images()}, "has no images; .* under one of images, pixel_values, input"),
    ("ddpm", torch.zeros(3, 3, 16, 16, dtype=torch.uint8), r"are torch.uint8; give floats scaled to \[-1, 1\]"),
    ("ddpm", torch.zeros(3, 1, 16, 16), r"have shape \(3, 1, 16, 16\); UNet2DModel takes \(n, 3, 16, 16\)"),
    ("ddpm", torch.zeros(3, 16, 16), "have shape"),
    ("ddpm-classes", images(), r"conditional and a batch has no 'class_labels'; give dicts such as dict\(images="),
    ("sd", torch.zeros(1, 4, 8, 8), "has no 'encoder_hidden_states'"),
    ("sd", torch.zeros(1, 3, 64, 64), r"takes \(n, 4, 8, 8\) \(latents, if it works on latents\)"),
    ("vae", torch.zeros(1, 1, 32, 32), r"a batch for AutoencoderKL must hold images of shape \(n, 3,"),
    ("hf-bert", torch.zeros(1), r"a batch is a Tensor; transformers models take dicts"),
    ("hf-bert", {"input_ids": torch.zeros(1, 4, dtype=torch.int64)}, "BertModel returned no loss; put labels"),
]


@pytest.mark.parametrize(("name", "batch", "message"), BAD_BATCHES)
def test_a_bad_batch_is_answered_with_what_to_give(name: str, batch: Any, message: str) -> None:
    adapter, model = adapter_and_model(ALL[name])
    loss = adapter.loss_of(model)
    assert loss is not None
    with pytest.raises(InputsError, match=message):
        loss(model, batch)


def test_transformers_have_their_own_loss() -> None:
    adapter, model = adapter_and_model(ALL["hf-gpt2"])
    loss = adapter.loss_of(model)
    assert loss is not None
    ids = torch.arange(5, 21)[None]
    assert torch.isfinite(loss(model, {"input_ids": ids, "labels": ids}))


def test_score_sde_models_trace_but_ask_for_a_loss() -> None:
    adapter, model = adapter_and_model(
        Row("ddpm", lambda: diffusers.UNet2DModel(**UNET, time_embedding_type="fourier"), {})
    )
    model(**adapter.example_inputs(model))
    with pytest.raises(InputsError, match=r"score-SDE model .* pass data= and loss="):
        adapter.loss_of(model)


# ---- pipelines ------------------------------------------------------------------------------------------------------


def pipeline(**scheduler: Any) -> Any:
    unet = diffusers.UNet2DModel(**UNET)
    return diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler(**scheduler))


def test_a_pipeline_is_unwrapped_and_comes_back_with_the_new_model() -> None:
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    adapter = find_adapter(pipe)
    model, back = adapter.unwrap(pipe)
    assert model is pipe.unet
    other = copy.deepcopy(model)
    made = back(other)
    assert type(made) is type(pipe)
    assert made.unet is other
    assert pipe.unet is model
    assert made.scheduler is pipe.scheduler
    assert back(model) is pipe  # pruned in place
    assert made(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    plain, same = find_adapter(model).unwrap(model)
    assert plain is model
    assert same(other) is other


def test_a_pipelines_scheduler_says_how_noise_is_added() -> None:
    pipe = pipeline(prediction_type="v_prediction", num_train_timesteps=50)
    adapter = find_adapter(pipe)
    batches, loss = adapter.calibration(pipe, 4), adapter.loss_of(pipe)
    assert batches is not None
    assert loss is not None
    assert max(int(b["timestep"].max()) for b in batches) < 50
    plain = adapter.loss_of(pipe.unet)
    assert plain is not None
    assert loss(pipe.unet, batches[0]).item() != plain(pipe.unet, batches[0]).item()


def test_other_pipelines_and_their_denoisers_are_recognised() -> None:
    transformer = diffusers.DiTTransformer2DModel(**DIT, num_embeds_ada_norm=10)
    pipe = diffusers.DiTPipeline(transformer, diffusers.AutoencoderKL(**VAE), diffusers.DDIMScheduler())
    adapter = find_adapter(pipe)
    assert type(adapter).__name__ == "DiTAdapter"
    assert adapter.unwrap(pipe)[0] is transformer
    latent = diffusers.LDMPipeline(diffusers.VQModel(**VAE), diffusers.UNet2DModel(**UNET), diffusers.DDIMScheduler())
    assert type(find_adapter(latent)).__name__ == "DDPMAdapter"


# ---- forward processes ----------------------------------------------------------------------------------------------

PROCESSES: dict[str, Noising] = {
    "epsilon": VariancePreserving({"num_train_timesteps": 1000}),
    "sample": VariancePreserving({"num_train_timesteps": 1000, "prediction_type": "sample"}),
    "v": VariancePreserving({"num_train_timesteps": 1000, "prediction_type": "v_prediction"}),
    "flow": Flow(),
    "flow-unit": Flow(1.0),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_perfect_model_samples_the_data(name: str) -> None:
    """All mass at one image: the target is then known exactly, and the sampler must land on the image."""
    process, clean = PROCESSES[name], torch.randn(2, 1, 4, 4, dtype=torch.float64)

    noises: list[Tensor] = []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        share = process.noised(zero, one, times)  # √(1 − ᾱ), or σ
        noises.append((x - process.noised(clean, zero, times)) / share)
        return process.target(clean, noises[-1], times)

    drawn = process.sample(predict, torch.randn_like(clean), 10, iter)
    assert len(noises) == 10
    for noise in noises:  # a deterministic sampler keeps the noise that it started from, all the way
        torch.testing.assert_close(noise, noises[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn, clean, atol=2e-2 if name != "flow" else 1e-6, rtol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_and_target_by_their_formulas(name: str) -> None:
    process = PROCESSES[name]
    clean, noise = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    if isinstance(process, Flow):
        times = torch.tensor([0.1, 0.5, 0.9]) * process.unit
        sigma = torch.tensor([0.1, 0.5, 0.9]).reshape(3, 1, 1, 1)
        noisy, target = (1 - sigma) * clean + sigma * noise, noise - clean
    else:
        times = torch.tensor([10, 500, 990])
        kept = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)[times].reshape(3, 1, 1, 1)
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        target = {"epsilon": noise, "sample": clean, "v": velocity}[name]
    torch.testing.assert_close(process.noised(clean, noise, times), noisy)
    torch.testing.assert_close(process.target(clean, noise, times), target)


@pytest.mark.parametrize("name", PROCESSES)
def test_times_are_stratified_and_seeded(name: str) -> None:
    process = PROCESSES[name]
    unit = process.unit if isinstance(process, Flow) else 1000
    times = process.at(strata(20, torch.Generator().manual_seed(0))).double() / unit
    assert (times * 20).floor().tolist() == list(range(20))
    assert float(times.max()) < 1


def test_schedulers_of_both_kinds_are_understood() -> None:
    diffusion, flow = PROCESSES["epsilon"], Flow(1.0)
    assert noising_of(None, flow) is flow
    assert noising_of(diffusers.FlowMatchEulerDiscreteScheduler(), flow) is flow
    assert noising_of(diffusers.FlowMatchEulerDiscreteScheduler(), diffusion) == Flow()
    solver = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert noising_of(solver, diffusion) == Flow()
    for name in (
        "DDPMScheduler",
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
    ):
        assert isinstance(noising_of(getattr(diffusers, name)(), flow), VariancePreserving)
    with pytest.raises(InputsError, match="does not know how EDMEulerScheduler adds noise: pass data= and loss="):
        noising_of(diffusers.EDMEulerScheduler(), diffusion)


# ---- what is not known ----------------------------------------------------------------------------------------------


def test_any_other_module_is_asked_for_its_inputs() -> None:
    adapter = find_adapter(nn.Linear(2, 2))
    with pytest.raises(InputsError, match="cannot know the inputs of Linear: pass example_inputs= a tensor, a tuple"):
        adapter.example_inputs(nn.Linear(2, 2))
    assert adapter.loss_of(nn.Linear(2, 2)) is None
    assert adapter.calibration(nn.Linear(2, 2)) is None
    assert adapter.protect(nn.Linear(2, 2)) == ()
    assert adapter.config(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("given", [3, "ddpm", None, torch.ones(1)])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(InputsError, match=r"is neither an nn\.Module nor a pipeline"):
        find_adapter(given)


def test_models_without_known_inputs_say_which_argument_is_missing() -> None:
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=12)
    with pytest.raises(InputsError, match="the argument 'proj_embedding' of PriorTransformer: pass example_inputs="):
        find_adapter(prior).example_inputs(prior)
    adapter_model = diffusers.T2IAdapter(channels=[16, 16], num_res_blocks=1, downscale_factor=8)
    with pytest.raises(InputsError, match="the inputs of T2IAdapter: pass example_inputs="):
        find_adapter(adapter_model).example_inputs(adapter_model)
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None)
    with pytest.raises(InputsError, match=r"SSD has no fixed input shape: pass example_inputs=, for a det"):
        find_adapter(detector).example_inputs(detector)


def test_looking_through_the_adapters_imports_no_model_library() -> None:
    code = (
        "import sys, torch; from fxprune.adapter import find_adapter; find_adapter(torch.nn.Linear(1, 1))\n"
        "print({'diffusers', 'timm', 'transformers', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_broken_adapter_is_skipped_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "shaky-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaky\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[fxprune.adapters]\nbroken = no_such_module:X\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match="adapter 'broken' of package 'shaky' cannot be imported"):
        assert type(find_adapter(nn.Linear(1, 1))).__name__ == "GenericAdapter"


def test_a_model_that_predicts_something_else_asks_for_a_loss() -> None:
    adapter, model = adapter_and_model(Row("ddpm", lambda: diffusers.UNet2DModel(**{**UNET, "out_channels": 5}), {}))
    with pytest.raises(InputsError, match=r"answers \(4, 3, 16, 16\) with \(4, 5, 16, 16\), so its loss is not"):
        adapter.calibration(model)
