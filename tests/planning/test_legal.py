"""`legal_for`: widths of linear layers that a quantiser takes afterwards, and torchao's verdict on them."""

import copy
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import BudgetError
from fxprune.planning.legal import FORMATS


def dit() -> Any:
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
    )
    with torch.no_grad():  # its last layers start at zero
        for p in net.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    return net.eval()


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4, 4, 8, 8, generator=generator)
    return {"hidden_states": sample, "timestep": torch.tensor([5, 9, 99, 400]), "class_labels": torch.arange(4)}


@torch.no_grad()
def result(net: Any) -> Tensor:
    out = net(**inputs()).sample
    assert isinstance(out, Tensor)
    return out


def odd(net: nn.Module, asked: tuple[int, int]) -> list[str]:
    linear = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    return [name for name, m in linear if m.in_features % asked[0] or m.out_features % asked[1]]


@pytest.mark.parametrize("legal_for", ["int8", "int4-g32", "fp8", "nvfp4"])
def test_widths_are_what_the_format_takes(legal_for: str) -> None:
    net = dit()
    small = fxprune.prune(net, "magnitude", 0.4, legal_for=legal_for, progress=False)
    made = fxprune.report(small)
    assert odd(small, FORMATS[legal_for]) == odd(net, FORMATS[legal_for])  # what was odd before is held by the outputs
    assert odd(fxprune.prune(net, "magnitude", 0.4, progress=False), FORMATS[legal_for])
    assert {m.split()[0] for m in made.misfits} == set(odd(small, FORMATS[legal_for]))
    assert abs(made.plan.achieved - 0.4) < 0.05


def test_a_layer_that_cannot_is_told() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    small = fxprune.prune(net, "magnitude", 0.4, legal_for="int4-g32", example_inputs=torch.ones(1, 6), progress=False)
    assert small[2].in_features == 32
    (told,) = fxprune.report(small).misfits
    assert told == "0 has 6 inputs (before: 6), no multiple of 32"
    assert f"not legal: {told}" in repr(fxprune.report(small))


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"legal_for='int3' is unknown; choose int8, int4-g32"):
        fxprune.prune(dit(), "magnitude", 0.4, legal_for="int3", progress=False)
    with pytest.raises(BudgetError, match="legal_for='int8' is for shape='free'"):
        fxprune.Limits(legal_for="int8", shape="stock")


@pytest.mark.parametrize("legal_for", ["int8", "int4-g32"])
def test_torchao_takes_them_at_no_more_error(legal_for: str) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    group = torchao.granularity.PerGroup(32)
    config = (
        torchao.Int8WeightOnlyConfig()
        if legal_for == "int8"
        else torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group)
    )

    def error(net: Any) -> float:
        quantised = copy.deepcopy(net)
        torchao.quantize_(quantised, config)
        return float((result(quantised) - result(net)).norm() / result(net).norm())

    net = dit()
    small = fxprune.prune(net, "magnitude", 0.4, legal_for=legal_for, progress=False)
    assert 0 < error(small) <= 1.2 * error(net)
