"""Models with LoRA layers in them, and the same merged: what tests of `carry_over` share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from fxprune.adapter import find_adapter
from fxprune.graph.modules import as_inputs

peft = pytest.importorskip("peft")


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config).eval()


def given(net: nn.Module) -> dict[str, Any]:
    args, kwargs = as_inputs(find_adapter(net).example_inputs(net))
    assert not args
    return kwargs


@torch.no_grad()
def result(net: nn.Module, inputs: dict[str, Any]) -> Tensor:
    out = net(**inputs)
    found = out.logits if hasattr(out, "logits") else out[0]
    assert isinstance(found, Tensor)
    return found


def with_lora(net: nn.Module, config: Any) -> nn.Module:
    """A copy with LoRA layers in it, of random numbers."""
    made = peft.inject_adapter_in_model(config, copy.deepcopy(net)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, p in made.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, 0, 0.3, generator=generator)
    return made  # type: ignore[no-any-return]


def merged(net: nn.Module) -> nn.Module:
    """The same without layers of peft: they are added to the weights."""
    made = copy.deepcopy(net)
    for path, module in list(made.named_modules()):
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
            owner, _, leaf = path.rpartition(".")
            setattr(made.get_submodule(owner), leaf, module.get_base_layer())
    return made


class Net(nn.Module):
    """A stream, a hidden width, words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.block = nn.ModuleDict({"up": nn.Linear(8, 32), "down_proj": nn.Linear(32, 8)})
        self.head = nn.Linear(8, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.head(x + self.block["down_proj"](self.block["up"](x).relu()))


IDS = torch.arange(6)[None]
