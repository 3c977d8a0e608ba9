"""What models return and take: objects, caches, and outputs that nobody reads."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.graph.outputs import Outputs


class Posterior:
    def __init__(self, moments: Tensor) -> None:
        self.mean, self.logvar = moments.chunk(2, 1)
        self.again = self


@dataclass
class Decoded:
    sample: Tensor
    posterior: Posterior


Pair = namedtuple("Pair", "sample posterior")


class Auto(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.enc = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 8, 1))
        self.dec = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Any:
        p = Posterior(self.enc(x))
        return self.kind(self.dec(p.mean), p)


KINDS = [lambda y, p: (y, p), Decoded, Pair, lambda y, p: {"sample": y, "more": [p]}]


def pruned(model: nn.Module, x: Any, **options: Any) -> Any:
    return fxprune.prune(model, "magnitude", 0.4, example_inputs=x, progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_objects_that_hold_tensors_are_outputs(kind: Any) -> None:
    net, x = Auto(kind), torch.randn(2, 3, 8, 8)
    small = pruned(net, x)
    assert fxprune.report(small).forward == "module"
    assert small.enc[2].out_channels == 8  # the posterior keeps its width
    assert small.enc[0].out_channels < 32
    assert type(small(x)) is type(net(x))


class Twice(nn.Module):
    """Returns its features beside its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(8, 32), nn.Linear(32, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.a(x).relu()
        return {"scores": self.b(self.drop(h)), "features": h}


@pytest.mark.parametrize("wanted", ["scores", ["scores"], lambda out: out["scores"]])
def test_outputs_that_nobody_needs_are_released(wanted: Any) -> None:
    net, x = Twice(), torch.randn(2, 8)
    with pytest.raises(fxprune.BudgetError, match="reaches the output"):
        pruned(net, x)
    small = pruned(net, x, outputs=wanted)
    report = fxprune.report(small)
    assert small.a.out_features < 32
    assert report.outputs.startswith("features released")
    assert "outputs: features released" in repr(report)
    graph = fxprune.trace(net, x, outputs=wanted)
    assert all(c.ok for c in fxprune.verify(net, small, graph, report.plan))
    assert fxprune.apply(Twice(), report.plan, example_inputs=x, outputs=wanted).a.out_features == small.a.out_features


def test_released_outputs_count_where_train_mode_returns_something_else() -> None:
    class Detector(Twice):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return out["features"] if self.training else (out["scores"], out["features"])

    graph = fxprune.trace(Detector(), torch.randn(2, 8), outputs="0")
    assert not graph.groups


def test_an_output_that_there_is_not() -> None:
    with pytest.raises(fxprune.InputsError, match="names no output of the model; it returns scores, features"):
        fxprune.trace(Twice(), torch.randn(2, 8), outputs="logits")


def test_a_graph_forward_cannot_give_what_was_released() -> None:
    net, x = Twice(), torch.randn(2, 8)
    graph = fxprune.trace(net, x, outputs="scores")
    assert not graph.traced.returned.whole
    assert fxprune.trace(net, x).traced.returned.whole


def test_the_names_of_outputs() -> None:
    held = Outputs()
    held((torch.ones(1), {"more": [torch.ones(2), Posterior(torch.ones(1, 2))]}, None, 3))
    assert held.names == ("0", "1.more.0", "1.more.1.mean", "1.more.1.logvar")
    held(torch.ones(1))
    assert held.names == ("output",)
    assert held.whole


class State:
    """A cache as decoders have: an object, in and out."""

    def __init__(self, keys: Tensor) -> None:
        self.layers = [{"keys": keys}]


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.k = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        keys = torch.cat([state.layers[0]["keys"], self.k(x)], 0)
        state.layers[0]["keys"] = keys
        return self.b(self.a(x).relu()) + keys.sum(0), state


def test_an_object_may_be_an_input_and_stays_as_it_was() -> None:
    net, x, state = Reader(), torch.randn(2, 8), State(torch.randn(3, 4))
    small = pruned(net, (x, state))
    assert len(state.layers[0]["keys"]) == 3
    assert small.a.out_features < 32
    assert small(x, State(torch.randn(5, 4)))[0].shape == (2, 4)


@pytest.fixture(scope="module")
def decoders() -> dict[str, nn.Module]:
    transformers = pytest.importorskip("transformers")
    tiny = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    llama = transformers.LlamaConfig(**tiny, num_attention_heads=4, num_key_value_heads=2)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    gpt2 = transformers.GPT2Config(vocab_size=96, n_embd=48, n_layer=1, n_head=4, n_positions=32, **ends)
    return {"llama": transformers.LlamaForCausalLM(llama), "gpt2": transformers.GPT2LMHeadModel(gpt2)}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoders_take_the_ids_of_their_caller(name: str, decoders: dict[str, nn.Module]) -> None:
    ids = torch.randint(0, 96, (1, 7))
    small = pruned(decoders[name], {"input_ids": ids})
    assert "keys" in fxprune.report(small).outputs  # the cache holds no width
    assert fxprune.report(small).plan.achieved > 0.35
    assert small.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 10)


def test_a_cache_may_be_an_input(decoders: dict[str, nn.Module]) -> None:
    ids, llama = torch.randint(0, 96, (1, 7)), decoders["llama"].eval()
    with torch.no_grad():
        cache = llama(ids, use_cache=True).past_key_values
    small = fxprune.prune(
        llama, "magnitude", 0.2, example_inputs={"input_ids": ids[:, :1], "past_key_values": cache}, progress=False
    )
    assert cache.get_seq_length() == 7
    assert small(ids[:, :1], past_key_values=cache).logits.shape == (1, 1, 96)
