"""What is carried over besides plain LoRA: DoRA, LoRA to a stock shape, IP-Adapters, new words of a text encoder."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import transformers
from diffusion_nets import model
from lora_nets import IDS, Net, given, llama, merged, peft, result, with_lora
from stock_nets import TOKENS, Encoder
from torch import Tensor

import fxprune

TARGETS = {
    "sd1": ["to_q", "to_v", "to_out.0", "conv1"],
    "dit": ["to_q", "to_v", "net.0.proj", "linear_1"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


def dora_of(name: str) -> tuple[Any, Any]:
    """A model, and the same with a DoRA of random numbers."""
    net = llama() if name == "llama" else model(name)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS[name], use_dora=True)
    dense = with_lora(net, config)
    with torch.no_grad():
        for key, p in dense.named_parameters():
            if "magnitude" in key:
                p.mul_(1 + 0.3 * torch.rand(p.shape))
    return net, dense


@pytest.mark.parametrize(("name", "attention"), [("sd1", "heads"), ("dit", "head_dim"), ("llama", "heads")])
def test_a_carried_dora_is_the_dora_of_the_pruned_model(name: str, attention: str) -> None:
    net, dense = dora_of(name)
    small = fxprune.prune(net, "magnitude", 0.4, attention=attention, progress=False)
    plan = fxprune.report(small).plan
    state = peft.get_peft_model_state_dict(dense)
    carried = fxprune.carry_over(plan, state, net, scaling=5 / 3)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS[name], use_dora=True)
    stock = peft.inject_adapter_in_model(config, copy.deepcopy(small)).eval()
    assert not peft.set_peft_model_state_dict(stock, carried).unexpected_keys
    inputs = given(net)
    expected, without = result(fxprune.apply(merged(dense), plan), inputs), result(small, inputs)
    assert (result(stock, inputs) - expected).abs().max() <= 1e-5
    assert (without - expected).abs().max() > 1e-2


@pytest.fixture(scope="module")
def pruned() -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    net = Net().eval()
    small = fxprune.prune(net, "magnitude", 0.5, example_inputs=(IDS,), progress=False)
    return net, small, fxprune.report(small).plan


@pytest.mark.parametrize(
    ("magnitudes", "shape"), [("dora_scale", (8, 1)), ("lora_magnitude_vector", (8,)), ("dora_scale", (1, 8))]
)
def test_the_file_says_how_much_its_factors_count(pruned: tuple[Any, Any, Any], magnitudes: str, shape: Any) -> None:
    net, small, plan = pruned
    a, b, m = torch.randn(2, 32), torch.randn(8, 2), torch.rand(shape) + 1
    names = [f"lora_unet_block_down_proj.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha", magnitudes)]
    made = fxprune.carry_over(
        plan, dict(zip(names, (a, b, torch.tensor(6.0), m), strict=True)), net, example_inputs=(IDS,)
    )
    inner = [int((net.block["up"].bias == v).nonzero()) for v in small.block["up"].bias]
    stream = [int((net.head.weight[0] == v).nonzero()) for v in small.head.weight[0]]
    weight = (net.block["down_proj"].weight + 3.0 * b @ a)[stream].detach()
    assert len(inner) < 32
    expected = m.flatten()[stream] * weight[:, inner].norm(dim=1) / weight.norm(dim=1)
    assert torch.allclose(made[names[3]].flatten(), expected)
    assert made[names[3]].dim() == m.dim()


def test_a_bias_beside_the_factors_is_none_of_them(pruned: tuple[Any, Any, Any]) -> None:
    net, _, plan = pruned
    names = [f"block.down_proj.{x}" for x in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_B.bias")]
    state = dict(zip(names, (torch.randn(2, 32), torch.randn(8, 2), torch.rand(8) + 1, torch.randn(8)), strict=True))
    made = fxprune.carry_over(plan, state, net, example_inputs=(IDS,), scaling=3.0)
    without = {n: t for n, t in state.items() if n != names[3]}
    expected = fxprune.carry_over(plan, without, net, example_inputs=(IDS,), scaling=3.0)
    assert len(made[names[2]]) < 8
    assert torch.equal(made[names[2]], expected[names[2]])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"block.down_proj.lora_magnitude_vector": torch.ones(8)}, "comes without the two factors of its layer"),
        (
            {
                "block.down_proj.lora_A.weight": torch.ones(2, 32),
                "block.down_proj.lora_B.weight": torch.ones(8, 2),
                "block.down_proj.lora_magnitude_vector": torch.ones(8),
            },
            r"does not say how much its factors count: pass scaling= \(lora_alpha / r",
        ),
        ({"block.down_proj.dora_scale": torch.ones(1, 32)}, "not one magnitude for each of 8 outputs"),
        ({"words.lora_magnitude_vector": torch.ones(1, 10)}, "is a DoRA of an embedding: merge it"),
        (
            {"ip_adapter": {"1.to_k_ip.weight": torch.ones(8, 4)}},
            "holds a state dict of its own.*load it into the model",
        ),
    ],
)
def test_what_cannot_be_carried_says_why(pruned: tuple[Any, Any, Any], state: dict[str, Any], message: str) -> None:
    with pytest.raises(fxprune.InputsError, match=message):
        fxprune.carry_over(pruned[2], state, pruned[0], example_inputs=(IDS,))


# ---- stock shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["channel", "block"])
@pytest.mark.parametrize("kohya", [False, True])
def test_a_lora_goes_along_to_a_stock_shape(granularity: str, kohya: bool) -> None:
    """Where layers went, those that moved up find theirs."""
    torch.manual_seed(0)
    net = Encoder().eval()
    with torch.no_grad():  # the first layer is worth the least
        for p in net.layers[0].parameters():
            p.mul_(0.01)
    small = fxprune.prune(
        net, "magnitude", 0.33, shape=functools.partial(Encoder), granularity=granularity, example_inputs=TOKENS,
        progress=False,
    )  # fmt: skip
    plan = fxprune.report(small).plan
    assert bool(plan.blocks) == (granularity == "block")
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["qkv", "down"])
    dense = with_lora(net, config)
    state = peft.get_peft_model_state_dict(dense)
    if kohya:
        state = {_kohya(k): v for k, v in state.items()}
    carried = fxprune.carry_over(plan, state, net, example_inputs=TOKENS)
    stock = peft.inject_adapter_in_model(config, copy.deepcopy(small)).eval()
    own = peft.get_peft_model_state_dict(stock)
    back = {(_kohya(k) if kohya else k): k for k in own}
    assert carried.keys() == back.keys()
    peft.set_peft_model_state_dict(stock, {back[k]: v for k, v in carried.items()})
    with torch.no_grad():
        expected = fxprune.apply(merged(dense), plan, example_inputs=TOKENS)(TOKENS)
        assert (stock(TOKENS) - expected).abs().max() <= 1e-5
        assert (small(TOKENS) - expected).abs().max() > 1e-2


def _kohya(key: str) -> str:
    path, _, rest = key.removeprefix("base_model.model.").partition(".lora_")
    return f"lora_unet_{path.replace('.', '_')}.lora_{'down' if rest.startswith('A') else 'up'}.weight"


# ---- adapters and words ------------------------------------------------------------------------------------------


def test_an_ip_adapter_goes_along_in_the_model() -> None:
    """The projections of image embeddings are cut like those of the text; both read the same queries."""
    net = model("sd1")
    whole, images = _with_ip_adapter(net)
    plan = fxprune.report(fxprune.prune(net, "magnitude", 0.4, progress=False)).plan
    inputs = {**given(net), "added_cond_kwargs": {"image_embeds": [images]}}
    small = fxprune.carry_over(plan, whole, net, inputs=inputs)
    assert all(c.ok for c in fxprune.report(small).checks)
    pairs = [(m, small.get_submodule(n)) for n, m in whole.named_modules() if n.endswith("to_k_ip.0")]
    assert pairs
    assert any(b.weight.shape[0] < a.weight.shape[0] for a, b in pairs)
    without = fxprune.apply(net, plan)
    assert (result(small, inputs) - result(without, given(net))).abs().max() > 1e-3


def _with_ip_adapter(net: Any) -> tuple[Any, Tensor]:
    """A UNet with an IP-Adapter loaded by diffusers, and embeddings of an image."""
    torch.manual_seed(2)
    made, width = copy.deepcopy(net), int(net.config.cross_attention_dim)
    state: dict[str, Any] = {"image_proj": {
        "proj.weight": torch.randn(4 * width, 8), "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }}  # fmt: skip
    cross = [n for n in net.attn_processors if n.endswith("attn2.processor")]
    layers = [net.get_submodule(n.removesuffix(".processor")) for n in cross]
    state["ip_adapter"] = {
        f"{2 * i + 1}.{part}_ip.weight": torch.randn_like(getattr(layer, part).weight) * 0.3
        for i, layer in enumerate(layers) for part in ("to_k", "to_v")
    }  # fmt: skip
    made._load_ip_adapter_weights([state])
    return made.eval(), torch.randn(1, 1, 8)


def test_new_words_of_a_text_encoder() -> None:
    """The pruned encoder with the carried word is the dense one with the word, pruned."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=8, projection_dim=16, eos_token_id=29,
    )  # fmt: skip
    net, word = transformers.CLIPTextModelWithProjection(config).eval(), torch.randn(32)
    ids = {"input_ids": torch.tensor([[1, 5, 7, 29]])}
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=ids, outputs="text_embeds", progress=False)
    plan = fxprune.report(small).plan
    carried = fxprune.carry_over(plan, {"<cat>": word}, net, example_inputs=ids, outputs="text_embeds")["<cat>"]
    table = small.get_input_embeddings().weight
    assert carried.shape == table.shape[1:]
    assert len(carried) < 32
    with torch.no_grad():
        net.get_input_embeddings().weight[5] = word
        table[5] = carried
        expected = fxprune.apply(net, plan, example_inputs=ids, outputs="text_embeds")(**ids).text_embeds
        assert (small(**ids).text_embeds - expected).abs().max() <= 1e-5
