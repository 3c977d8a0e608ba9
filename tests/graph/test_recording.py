"""What a run under the recorder does to memoised functions."""

from __future__ import annotations

import functools

import torch
from couplings import made, split_heads

import fxprune
from fxprune.graph.recording import bypassed


def test_memoised_functions_answer_each_layer_for_itself() -> None:
    model, inputs = made("Memoised")
    with bypassed(model, int):
        split_heads.cache_clear()
        assert split_heads(torch.Size([2, 6, 16]), 4) == (2, 6, 4, 4)
        assert split_heads.cache_info().currsize == 0
    small = fxprune.prune(model, "magnitude", 0.5, example_inputs=inputs, progress=False)
    assert fxprune.report(small).forward == "module"
    assert all(layer.heads < 4 or layer.qkv.out_features < 48 for layer in small.layers)
    assert all(type(n) is int for n in split_heads(torch.Size([2, 6, 16]), 4))
    assert isinstance(split_heads, functools._lru_cache_wrapper)  # as it was
