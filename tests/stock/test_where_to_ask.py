"""Where a stock shape cannot be asked for, the error says where it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stock_nets import TOKENS, Encoder

import fxprune

ASKED: list[dict[str, Any]] = [{"shape": "stock"}, {"shape": Encoder}, {"limits": fxprune.Limits(shape="stock")}]


@pytest.fixture(scope="module")
def net() -> Encoder:
    torch.manual_seed(0)
    return Encoder(layers=1).eval()


@pytest.mark.parametrize("asked", ASKED)
def test_a_pruner_says_what_to_call(net: Encoder, asked: dict[str, Any]) -> None:
    message = r"a Pruner has masks alone: call fxprune.prune\(model, shape=..., steps=...\)"
    with pytest.raises(fxprune.InputsError, match=message):
        fxprune.Pruner(net, criterion="magnitude", steps=10, example_inputs=TOKENS, **asked)


@pytest.mark.parametrize("asked", ASKED)
def test_a_plan_of_a_graph_says_whose_report_has_one(net: Encoder, asked: dict[str, Any]) -> None:
    graph = fxprune.trace(net, TOKENS)
    scores = fxprune.score(graph, net, "magnitude")
    with pytest.raises(fxprune.BudgetError, match=r"whose report has the plan: fxprune.report\(small\).plan"):
        fxprune.plan(graph, scores, 0.4, **asked)
