"""What was trained for the dense model, cut by the plan: cutting and adding may change places."""

import copy
from typing import Any

import diffusers
import pytest
import torch
from diffusion_nets import model
from lora_nets import IDS, Net, given, llama, merged, peft, result, with_lora
from torch import Tensor, nn

import fxprune
from fxprune import InputsError, PlanError
from fxprune.adapter import find_adapter
from fxprune.planning.translation import translated
from fxprune.pruning.finish import finished

TARGETS = {
    "sd1": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "time_emb_proj"],
    "dit": ["to_q", "to_v", "net.0.proj", "linear_1"],
    "flux": ["to_q", "to_k", "proj_mlp", "add_q_proj", "proj_out"],
    "llama": ["q_proj", "v_proj", "down_proj", "up_proj", "embed_tokens"],
}


@pytest.mark.parametrize(("name", "attention"), [*((n, "heads") for n in TARGETS), ("dit", "head_dim")])
def test_a_carried_lora_is_the_lora_of_the_pruned_model(name: str, attention: str) -> None:
    """pruned(dense + LoRA) = pruned + carried LoRA; with head_dim, query weights take a factor, and so must B."""
    net = llama() if name == "llama" else model(name)
    small = fxprune.prune(net, "magnitude", 0.4, attention=attention, progress=False)
    plan = fxprune.report(small).plan
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS[name])
    dense = with_lora(net, config)
    state = peft.get_peft_model_state_dict(dense, save_embedding_layers=False)
    carried = fxprune.carry_over(plan, state, net)
    assert carried.keys() == state.keys()
    stock = peft.inject_adapter_in_model(config, copy.deepcopy(small)).eval()
    assert not peft.set_peft_model_state_dict(stock, carried).unexpected_keys
    inputs = given(net)
    expected, without = result(fxprune.apply(merged(dense), plan), inputs), result(small, inputs)
    assert (result(stock, inputs) - expected).abs().max() <= 1e-5
    assert (without - expected).abs().max() > 1e-2
    if name == "dit":  # the model itself, with the layers in place
        whole = fxprune.carry_over(plan, dense, net)
        assert all(c.ok for c in fxprune.report(whole).checks)
        assert (result(whole, inputs) - expected).abs().max() <= 1e-5


# ---- names and shapes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned() -> tuple[Net, Any, Any]:
    torch.manual_seed(0)
    net = Net().eval()
    small = fxprune.prune(net, "magnitude", 0.5, example_inputs=(IDS,), progress=False)
    return net, small, fxprune.report(small).plan


def carry(pruned: tuple[Net, Any, Any], state: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = fxprune.carry_over(pruned[2], state, pruned[0], example_inputs=(IDS,))
    return made


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("block.up.lora_A.weight", "block.up.lora_B.weight"),
        ("base_model.model.block.up.lora_A.default.weight", "base_model.model.block.up.lora_B.default.weight"),
        ("transformer.block.up.lora.down.weight", "transformer.block.up.lora.up.weight"),
        ("lora_unet_block_up.lora_down.weight", "lora_unet_block_up.lora_up.weight"),
    ],
)
def test_names_of_every_format(pruned: tuple[Net, Any, Any], down: str, up: str) -> None:
    net, small, _ = pruned
    a, b = torch.randn(2, 8), torch.randn(32, 2)
    made = carry(pruned, {down: a, up: b, "alpha": 3.0})
    stays = [int((net.block["up"].bias == v).nonzero()) for v in small.block["up"].bias]
    stream = [int((net.head.weight[0] == v).nonzero()) for v in small.head.weight[0]]
    assert len(stays) < 32
    assert len(stream) < 8
    assert torch.equal(made[up], b[stays])
    assert torch.equal(made[down], a[:, stream])
    assert made["alpha"] == 3.0


def test_whole_tensors_embeddings_and_new_words(pruned: tuple[Net, Any, Any]) -> None:
    net, small, _ = pruned
    state = {
        "base_model.model.head.modules_to_save.weight": net.head.weight.detach(),
        "words.lora_embedding_A": torch.ones(2, 10),
        "words.lora_embedding_B": net.words.weight[:2].detach().T,
        "<cat>": net.words.weight[3].detach(),
        "text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 5),
    }
    made = carry(pruned, state)
    assert torch.equal(made["base_model.model.head.modules_to_save.weight"], small.head.weight)
    assert made["words.lora_embedding_A"].shape == (2, 10)
    assert torch.equal(made["words.lora_embedding_B"].T, small.words.weight[:2])
    assert torch.equal(made["<cat>"], small.words.weight[3])
    assert made["text_encoder.layers.0.q_proj.lora_A.weight"].shape == (2, 5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"block.other.lora_A.weight": torch.ones(2, 8)},
            "'block.other.lora_A.weight' is no LoRA factor, and no tensor",
        ),
        ({"block.up.hada_w1_a": torch.ones(32, 2)}, "is no LoRA factor.*carry the model with it"),
        (
            {"block.up.lora_B.weight": torch.ones(16, 2)},
            "does not fit the layer's weight \\(32, 8\\): it was not trained",
        ),
    ],
)
def test_what_does_not_fit_is_refused(pruned: tuple[Net, Any, Any], state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        carry(pruned, state)


def test_layers_that_are_gone_have_no_lora() -> None:
    net = model("dit")
    small = fxprune.prune(net, "magnitude", 0.3, granularity="block", progress=False)
    plan = fxprune.report(small).plan
    assert plan.blocks
    config = peft.LoraConfig(r=2, target_modules=TARGETS["dit"])
    state = peft.get_peft_model_state_dict(with_lora(net, config))
    carried = fxprune.carry_over(plan, state, net)
    assert 0 < len(carried) < len(state)
    stock = peft.inject_adapter_in_model(config, copy.deepcopy(small))
    found = peft.get_peft_model_state_dict(stock)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in carried.items()}
    with pytest.raises(PlanError, match="takes out whole blocks"):
        fxprune.carry_over(plan, with_lora(net, config), net)


def test_a_plan_that_the_added_layers_tie_together_is_refused(pruned: tuple[Net, Any, Any]) -> None:
    net, _, plan = pruned

    class Skipped(Net):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            h = self.block["up"](x)
            return self.head(x + self.block["down_proj"]((h + torch.cat([x] * 4, -1)).relu()))

    made = Skipped().eval()
    made.load_state_dict(net.state_dict())
    with pytest.raises(PlanError, match="couples channels that go with channels that stay"):
        fxprune.carry_over(plan, made, net, example_inputs=(IDS,))


# ---- ControlNets and adapters ------------------------------------------------------------------------------------


class Both(nn.Module):
    """A denoiser and what feeds it, as one model."""

    def __init__(self, net: Any, side: Any, feeds: dict[str, str]) -> None:
        super().__init__()
        self.net, self.side, self.feeds = net, side, feeds

    def forward(self, given: dict[str, Any], side: dict[str, Any]) -> Tensor:
        out = self.side(**side)
        fed = {name: getattr(out, field) if field else out for name, field in self.feeds.items()}
        found = self.net(**given, **{k: v for k, v in fed.items() if v is not None})[0]
        assert isinstance(found, Tensor)
        return found


def side_model(kind: str, net: Any) -> Any:
    torch.manual_seed(1)
    if kind == "t2i":
        made: Any = diffusers.T2IAdapter(3, [32, 64], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter")
    elif kind == "flux":
        size = {k: net.config[k] for k in ("attention_head_dim", "num_attention_heads")}
        made = diffusers.FluxControlNetModel.from_transformer(net, num_layers=1, num_single_layers=1, **size)
    else:
        made = diffusers.ControlNetModel.from_unet(net, conditioning_channels=3)
    with torch.no_grad():  # its last layers start at zero
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return made.eval()


@pytest.mark.parametrize(("name", "kind"), [("sd1", "controlnet"), ("flux", "flux"), ("sd1", "t2i")])
def test_a_side_model_fits_the_pruned_one(name: str, kind: str) -> None:
    """Both together, pruned as one model, compute what the pruned model and the carried one do."""
    net = model(name)
    small = fxprune.prune(net, "magnitude", 0.4, progress=False)
    plan, side = fxprune.report(small).plan, side_model(kind, net)
    carried = fxprune.carry_over(plan, side, net)
    assert type(carried) is type(side)
    adapter, inputs = find_adapter(net), given(net)
    feeds, side_inputs = dict(adapter.feeds(net, side)), adapter.side_inputs(side, inputs)
    with torch.no_grad():
        out = Both(small, carried, feeds)(inputs, side_inputs)
        with pytest.raises(RuntimeError, match="must match"):
            Both(small, side, feeds)(inputs, side_inputs)
    if kind != "t2i":  # an adapter reads on in what it puts out, so that as one model both would be cut elsewhere
        whole = Both(net, side, feeds)
        graph = fxprune.trace(whole, (inputs, side_inputs))
        there = translated(plan, fxprune.trace(net), graph, lambda n: f"net.{n}")
        made = finished(whole, graph, there, verify=True, strict=False)
        with torch.no_grad():
            assert (made(inputs, side_inputs) - out).abs().max() <= 1e-5
        assert not carried._forward_hooks
        assert sum(p.numel() for p in carried.parameters()) < sum(p.numel() for p in side.parameters())
    assert (out - result(small, inputs)).abs().max() > 1e-2


def test_a_model_that_feeds_nothing_known_is_refused(pruned: tuple[Net, Any, Any]) -> None:
    net, _, plan = pruned
    with pytest.raises(InputsError, match=r"is not known to read a Linear: pass feeds="):
        fxprune.carry_over(plan, nn.Linear(2, 2), net, example_inputs=(IDS,))
    with pytest.raises(InputsError, match="takes no input 'x'"):
        fxprune.carry_over(plan, nn.Linear(2, 2), net, example_inputs=(IDS,), feeds={"x": ""})


class Fed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        h = self.a(x)
        return self.b(torch.tanh(h if more is None else h + more))  # type: ignore[no-any-return]


class Side(nn.Module):
    """Two outputs of one layer, the second of which is somebody else's, unless it is alone."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.made, self.alone = nn.Linear(4, 16), alone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.made(x)
        return {"more": y} if self.alone else {"more": y, "other": y * 2}


@pytest.mark.parametrize("alone", [True, False])
def test_an_output_that_another_one_shares_is_picked_from(alone: bool) -> None:
    torch.manual_seed(0)
    net, side, x = Fed().eval(), Side(alone=alone).eval(), torch.randn(3, 4)
    small = fxprune.prune(net, "magnitude", 0.5, example_inputs=(x,), progress=False)
    plan = fxprune.report(small).plan
    made = fxprune.carry_over(plan, side, net, example_inputs=(x,), feeds={"more": "more"}, inputs=(x,))
    out = made(x)
    assert out["more"].shape == (3, small.a.out_features)
    assert made.made.out_features == (small.a.out_features if alone else 16)
    if not alone:
        assert torch.equal(out["other"], side(x)["other"])
    small(x, out["more"])
