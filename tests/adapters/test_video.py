"""Transformers of clips: latents of any size are data, and the loss is that of flow matching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune

pytest.importorskip("diffusers")
import diffusers

from fxprune.adapter import find_adapter


def wan() -> nn.Module:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "qk_norm": "rms_norm_across_heads"}
    sizes = {"text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 32}
    return diffusers.WanTransformer3DModel(in_channels=4, out_channels=4, cross_attn_norm=True, **heads, **sizes)


def hunyuan() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16}
    sizes |= {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1}
    more = {"text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6), "guidance_embeds": False}
    return diffusers.HunyuanVideoTransformer3DModel(**sizes, **more)


def batch(frames: int, side: int, **more: Any) -> dict[str, Any]:
    given = torch.Generator().manual_seed(1)
    clips = torch.randn(2, 4, frames, side, side, generator=given)
    return {"images": clips, "encoder_hidden_states": torch.randn(2, 5, 16, generator=given), **more}


MORE = {"hunyuan": {"encoder_attention_mask": torch.ones(2, 5), "pooled_projections": torch.ones(2, 8)}, "wan": {}}
NETS = {"wan": wan, "hunyuan": hunyuan}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("frames", "side"), [(3, 8), (4, 12)])
def test_the_loss_is_that_of_flow_matching_on_clips_of_any_size(name: str, frames: int, side: int) -> None:
    net = NETS[name]()
    clips = batch(frames, side, **MORE[name])
    times, noise = torch.tensor([250.0, 500.0]), torch.ones_like(clips["images"])
    found = find_adapter(net).loss_of(net)(net, {**clips, "timestep": times, "noise": noise})
    share = (times / 1000).view(2, 1, 1, 1, 1)
    noisy = (1 - share) * clips["images"] + share * noise
    given = {k: v for k, v in clips.items() if k != "images"}
    answer = net.eval()(noisy, timestep=times, **given).sample
    torch.testing.assert_close(found, (answer - (noise - clips["images"])).square().mean(), rtol=1e-4, atol=1e-5)


def test_clips_of_other_channels_are_refused() -> None:
    net = wan()
    with pytest.raises(fxprune.InputsError, match=r"have shape \(2, 3, 3, 8, 4\); WanTransformer3DModel takes \(n, 4,"):
        find_adapter(net).loss_of(net)(net, {**batch(3, 8), "images": torch.zeros(2, 3, 3, 8, 4)})


def test_gradients_rank_a_video_model_on_a_users_clips() -> None:
    small = fxprune.prune(wan(), "taylor", 0.2, data=[batch(3, 8)], progress=False)
    assert fxprune.report(small).plan.achieved == pytest.approx(0.2, abs=0.04)
