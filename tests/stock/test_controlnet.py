"""A ControlNet of a pruned UNet: from its config, where that states the widths, or pruned together with it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

X = {
    "sample": torch.randn(1, 4, 8, 8),
    "timestep": torch.tensor(3),
    "encoder_hidden_states": torch.randn(1, 5, 16),
}
IMAGE = torch.randn(1, 3, 64, 64)


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )


@pytest.mark.slow
def test_from_the_config_of_a_stock_shape() -> None:
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    kept = ["time_embedding.*"]
    small = fxprune.prune(unet(), "magnitude", 0.3, shape="stock", nearest=True, ignore=kept, progress=False)
    assert small.config.block_out_channels[1] < 32
    down, mid = ControlNetModel.from_unet(small)(**X, controlnet_cond=IMAGE, return_dict=False)
    out = small(**X, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert out.shape == X["sample"].shape


class Pair(nn.Module):
    def __init__(self, dense: Any) -> None:
        from diffusers import ControlNetModel

        super().__init__()
        self.unet, self.controlnet = dense, ControlNetModel.from_unet(dense)

    def forward(self, image: Tensor, **given: Tensor) -> Tensor:
        down, mid = self.controlnet(**given, controlnet_cond=image, return_dict=False)
        out: Tensor = self.unet(**given, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        return out


@pytest.mark.slow
def test_pruned_together() -> None:
    torch.manual_seed(0)
    pair = Pair(unet())
    small = fxprune.prune(pair, "magnitude", 0.3, example_inputs=X | {"image": IMAGE}, progress=False)
    assert fxprune.report(small).forward == "module"
    for part in ("unet", "controlnet"):
        now, then = (sum(p.numel() for p in m.get_submodule(part).parameters()) for m in (small, pair))
        assert now < 0.9 * then
    assert small(IMAGE, **X).shape == X["sample"].shape
