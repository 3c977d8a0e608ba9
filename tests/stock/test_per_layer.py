"""Widths by layer, where a class of transformers reads them: `per_layer_config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxprune


class OwnConfig(transformers.PretrainedConfig):
    model_type = "own_widths"

    def __init__(self, hidden_size: int = 16, intermediate_size: int = 32, **more: Any) -> None:
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.vocab_size = more.pop("num_hidden_layers", 3), more.pop("vocab_size", 20)
        super().__init__(**more)


class OwnModel(transformers.PreTrainedModel):
    """Layers of which each reads its own width."""

    config_class = OwnConfig
    main_input_name = "input_ids"

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        width, widths = config.hidden_size, [c.intermediate_size for c in config.per_layer_config]
        self.embed = nn.Embedding(config.vocab_size, width)
        self.up = nn.ModuleList(nn.Linear(width, n) for n in widths)
        self.down = nn.ModuleList(nn.Linear(n, width) for n in widths)
        self.head = nn.Linear(width, 4)
        self.post_init()

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        made: Tensor = self.head(x)
        return made


def net() -> Any:
    torch.manual_seed(0)
    return OwnModel(OwnConfig()).eval()


def test_each_layer_gets_a_width_of_its_own(tmp_path: Path) -> None:
    """And the library's own save and load keep them."""
    small: Any = fxprune.prune(net(), "magnitude", 0.3, shape="stock", ignore=["embed", "head"], progress=False)
    widths = [m.out_features for m in small.up]
    assert len(set(widths)) > 1
    assert max(widths) < 32
    assert fxprune.report(small).plan.achieved == pytest.approx(0.3, abs=0.04)
    assert "per_layer_config.1.intermediate_size" in fxprune.report(small).plan.config
    ids = torch.arange(6)[None]
    type(small)(small.config).load_state_dict(small.state_dict(), strict=True)
    small.save_pretrained(tmp_path)
    again = OwnModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(ids), small(ids))


def test_the_plan_is_replayed() -> None:
    small: Any = fxprune.prune(net(), "magnitude", 0.3, shape="stock", ignore=["embed", "head"], progress=False)
    again: Any = fxprune.apply(net(), fxprune.report(small).plan)
    assert [m.out_features for m in again.up] == [m.out_features for m in small.up]


def test_a_class_that_reads_one_for_all_layers_has_no_entries_by_layer() -> None:
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    made = fxprune.adapter.find_adapter(llama := transformers.LlamaForCausalLM(config)).constructor(llama)
    assert made is not None
    assert "per_layer_config" not in made.config
