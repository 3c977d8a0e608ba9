"""Every kind of diffusion model, and real pipelines around them: pruned, saved, loaded, drawn with, trained."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusion_nets
import pytest
import torch
from diffusion_nets import MODELS, PIPELINES, everything, model, smaller
from safetensors.torch import load_file

import fxprune
from fxprune import InputsError
from fxprune.adapter import find_adapter

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:.*(__array__|steps_offset|outdated|SlidingWindow).*")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def numel(net: Any) -> int:
    return sum(p.numel() for p in net.parameters())


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pruned_to_the_budget_and_trains(name: str) -> None:
    net = model(name)
    small = smaller(net)
    made = fxprune.report(small)
    assert abs(1 - numel(small) / numel(net) - 0.4) <= 0.01
    assert (type(small), made.forward, made.checks[0].ok) == (type(net), "module", True)
    net.to("meta")
    data, loss = _calibrated(small)
    optimizer = torch.optim.SGD(small.parameters(), 1e-3)
    before = loss(small.train(), data[0])
    before.backward()
    optimizer.step()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters() if p.requires_grad)
    assert loss(small, data[0]) < before


def _calibrated(net: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the text conditions of")
        return fxprune.calibration(net, 2)


@pytest.mark.parametrize("name", ["vae", "vq", "tiny-vae"])
def test_an_autoencoder_keeps_its_latents(name: str) -> None:
    """The latents lie inside forward, but the denoiser relies on them, and so does decode."""
    net = model(name)
    small = smaller(net)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        old, new = net.encode(images), small.encode(images)
    if name == "vae":  # the variance, too, which forward does not read
        assert new.latent_dist.parameters.shape == old.latent_dist.parameters.shape
    latents = old.latent_dist.mode() if name == "vae" else old.latents
    assert (new.latent_dist.mode() if name == "vae" else new.latents).shape == latents.shape
    assert small.decode(latents).sample.shape == images.shape
    assert numel(small.encoder) < 0.8 * numel(net.encoder)
    assert numel(small.decoder) < 0.8 * numel(net.decoder)


def test_all_load_in_a_new_process_bit_for_bit(tmp_path: Path) -> None:
    before = {}
    for name in MODELS:
        small = smaller(model(name))
        fxprune.save(small, tmp_path / "models" / name)
        before[f"model-{name}"] = everything(small)
    for name, case in PIPELINES.items():
        pipeline = case.around(smaller(model(case.net)))
        fxprune.save_pipeline(pipeline, tmp_path / "pipelines" / name)
        before[f"pipeline-{name}"] = everything(pipeline, case)
    command = [sys.executable, diffusion_nets.__file__, str(tmp_path), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, tensors in before.items():
        after = load_file(tmp_path / f"{name}.out")
        assert set(after) == set(tensors), name
        assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in tensors.items()), name


# ---- pipelines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_pruned_without_data_and_draws_images(name: str) -> None:
    case = PIPELINES[name]
    pipeline = case.around(model(case.net))
    dense = case.images(pipeline)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*conditions.*random.*")
        small = fxprune.prune(pipeline, "taylor", 0.4, samples=4, progress=False)
    images = case.images(small)
    assert images.shape == dense.shape == case.image
    assert (images != dense).any()
    assert abs(fxprune.report(small).plan.achieved - 0.4) <= 0.01
    assert type(small) is type(pipeline)
    assert fxprune.report(small).plan.criterion == "taylor"


def test_a_pipeline_with_a_pruned_autoencoder_too(tmp_path: Path) -> None:
    case = PIPELINES["sd1"]
    pipeline = case.around(smaller(model("sd1")))
    pipeline.vae = smaller(pipeline.vae)
    again = fxprune.load_pipeline(fxprune.save_pipeline(pipeline, tmp_path / "p"))
    assert (case.images(again) == case.images(pipeline)).all()
    assert numel(again.vae) < 0.61 * numel(model("vae"))
    assert fxprune.report(again.vae).plan == fxprune.report(pipeline.vae).plan


# ---- what pipelines know: prompts and pixels ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd-inpaint", "pixart", "sd3", "flux"])
def test_text_encoders_make_the_conditions(name: str) -> None:
    """Those of the calibration are the encoder's own: the same for the same prompt."""
    case = PIPELINES[name]
    pipeline = case.around(model(case.net))
    task = find_adapter(pipeline)._task_in(pipeline)[1]  # type: ignore[attr-defined]
    encoders = task.prompted.__self__
    one, same, other = (encoders.conditions([text]) for text in ("a red car", "a red car", "a house"))
    key = "encoder_hidden_states"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])
    assert not {"hidden_states", "sample", "timestep", "return_dict"} & set(one)
    batches, loss = fxprune.calibration(pipeline, 3)
    assert batches[0]["conditions"][key].shape[0] == 3
    given = {"images": batches[0]["images"][:2]}
    by_prompt = loss(encoders.model, {**given, "prompt": ["a red car", "a house"]})
    assert by_prompt == loss(encoders.model, {**given, "conditions": encoders.conditions(["a red car", "a house"])})
    assert by_prompt != loss(encoders.model, {**given, "prompt": ["a tree", "a house"]})


def test_without_text_encoders_the_conditions_are_random_and_one_is_told() -> None:
    with pytest.warns(UserWarning, match="text conditions of this UNet2DConditionModel are random .* whole pipeline"):
        fxprune.calibration(model("sd1"), 2)
    pipeline = PIPELINES["sd1"].around(model("sd1"))
    pipeline.text_encoder = None
    with pytest.warns(UserWarning, match="are random numbers"):
        fxprune.calibration(pipeline, 2)
    pipeline = PIPELINES["sd1"].around(model("sd1"))
    pipeline.tokenizer = lambda *a, **k: {}
    with pytest.warns(UserWarning, match="could not be called with a prompt .* random numbers instead"):
        fxprune.calibration(pipeline, 2)


@pytest.mark.parametrize("name", ["sd1", "ldm", "sd3"])
def test_pixels_become_scaled_latents(name: str) -> None:
    case = PIPELINES[name]
    pipeline = case.around(model(case.net))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    net = find_adapter(pipeline).unwrap(pipeline)[0]
    with torch.no_grad():
        if name == "ldm":
            latents = pipeline.vqvae.encode(images).latents * pipeline.vqvae.config.scaling_factor
        else:
            latents = (pipeline.vae.encode(images).latent_dist.mode() - 0.1) * pipeline.vae.config.scaling_factor
    _, loss = fxprune.calibration(pipeline, 2)
    text = {} if name == "ldm" else {"prompt": ["a cat", "a dog"]}
    # Left out, noise and times would be drawn by the very bits of the latents.
    drawn = {"noise": torch.randn(latents.shape), "timestep": torch.tensor([100, 700])}
    by_pixels, by_latents = (
        loss(net, given | drawn | text) for given in ({"pixel_values": images}, {"images": latents})
    )
    torch.testing.assert_close(by_pixels, by_latents, rtol=1e-4, atol=0)
    with pytest.raises(InputsError, match="the images of a batch have shape"):
        loss(net, {"images": torch.rand(2, 5, 16, 16), **text})
