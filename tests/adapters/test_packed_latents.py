"""Flux and its like, fine-tuned from a folder of pictures with captions: pixels become the tokens of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import fxprune

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import diffusers
from diffusion_nets import FLUX, PIPELINES, model, t5_encoder, t5_tokenizer

from fxprune.adapter import find_adapter


@pytest.fixture(scope="module")
def pipeline() -> Any:
    case = PIPELINES["flux"]
    return case.around(model(case.net))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    for k in range(2):
        Image.effect_noise((80, 70), 50).convert("RGB").save(made / f"{k}.png")
        (made / f"{k}.txt").write_text("a red car")
    return made


def seen(pipeline: Any, loss: Any, batch: Any) -> dict[str, Any]:
    """What the denoiser is called with."""
    held: list[dict[str, Any]] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda m, a, k: held.append(k), with_kwargs=True)
    try:
        loss(pipeline.transformer, batch)
    finally:
        hook.remove()
    return held[-1]


def test_a_folder_becomes_what_the_pipeline_calls_its_denoiser_with(pipeline: Any, folder: Path) -> None:
    data, loss = fxprune.open_data(pipeline, folder, batch=2)
    (batch,) = data
    side = batch["images"].shape[-1]
    assert batch["prompt"] == ["a red car"] * 2
    given = seen(pipeline, loss, batch)
    own: list[dict[str, Any]] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda m, a, k: own.append(k), with_kwargs=True)
    size = {"height": side, "width": side, "max_sequence_length": 77, "output_type": "latent"}
    pipeline("a red car", num_inference_steps=1, **size)
    hook.remove()
    assert given["hidden_states"].shape[1:] == own[0]["hidden_states"].shape[1:]
    assert torch.equal(given["img_ids"].float(), own[0]["img_ids"].float())
    for name in ("encoder_hidden_states", "pooled_projections"):
        torch.testing.assert_close(given[name][:1], own[0][name])


@pytest.mark.parametrize("height", [16, 32])
def test_pictures_of_any_even_size_are_packed_as_the_pipeline_packs(pipeline: Any, height: int) -> None:
    images = torch.rand(1, 3, height, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = pipeline.vae
    with torch.no_grad():
        clean = (vae.encode(images).latent_dist.mode() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    rows, columns = (s // 2 for s in clean.shape[-2:])
    tokens = pipeline._pack_latents(clean, 1, clean.shape[1], *clean.shape[-2:])
    batch = {"images": images, "prompt": ["a car"], "timestep": torch.tensor([0.5]), "noise": torch.zeros_like(tokens)}
    given = seen(pipeline, find_adapter(pipeline).loss_of(pipeline), batch)
    torch.testing.assert_close(given["hidden_states"], tokens / 2)  # flow matching, half way, to a noise of zeros
    assert given["img_ids"].shape == (rows * columns, 3)
    assert given["img_ids"][-1].tolist() == [0, rows - 1, columns - 1]


def test_what_cannot_be_packed_is_told(pipeline: Any, folder: Path) -> None:
    loss = find_adapter(pipeline).loss_of(pipeline)
    times = pipeline.vae_scale_factor
    with pytest.raises(fxprune.InputsError, match=f"multiples of {2 * times}"):
        loss(pipeline.transformer, {"images": torch.zeros(1, 3, 3 * times, 4 * times), "prompt": ["a"]})
    with pytest.raises(fxprune.InputsError, match="does not tell: give the whole pipeline"):
        fxprune.open_data(pipeline.transformer, folder)


def test_it_trains_from_the_folder(pipeline: Any, folder: Path) -> None:
    data = fxprune.open_data(pipeline, folder, batch=2, shuffle=True).batches
    small = fxprune.prune(pipeline, "magnitude", 0.2, steps=2, data=data, progress=False)
    assert fxprune.report(small.transformer).plan.achieved == pytest.approx(0.2, abs=0.03)
    again = seen(small, find_adapter(small).loss_of(small), next(iter(data)))
    assert again["hidden_states"].shape == (2, 256, 16)


def test_chroma_packs_likewise(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {k: v for k, v in FLUX.items() if k != "pooled_projection_dim"}
    more = {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
    net: nn.Module = diffusers.ChromaTransformer2DModel(**sizes, **more)
    parts = {"vae": model("vae"), "text_encoder": t5_encoder(), "tokenizer": t5_tokenizer(), "transformer": net}
    pipeline = diffusers.ChromaPipeline(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **parts)
    data, loss = fxprune.open_data(pipeline, folder, batch=2)
    (batch,) = data
    given = seen(pipeline, loss, batch)
    assert given["hidden_states"].shape == (2, 256, 16)
    assert given["attention_mask"].shape[1] == 256 + given["encoder_hidden_states"].shape[1]
    drawn, _ = fxprune.calibration(pipeline, samples=1)
    assert "attention_mask" in seen(pipeline, loss, drawn[0])
