"""The temperature of an attention."""

from __future__ import annotations

from couplings import made, random_scores

import fxprune
from fxprune.planning.planner import plan
from fxprune.rewriting.rewrite import rewrite
from fxprune.verification import check_dense


def test_head_dim_keeps_the_temperature() -> None:
    """Pruned head dimensions leave softmax's 1/sqrt(d) at that of the original model."""
    model, inputs = made("MultiHead")
    graph = fxprune.trace(model, inputs, attention="head_dim")
    planned = plan(graph, random_scores(graph), 0.4)
    small = rewrite(model, graph, planned).model
    assert check_dense(model, small, graph, planned).ok
    assert small.att.num_heads == 4
    assert small.att.embed_dim < 16
