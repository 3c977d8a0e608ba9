"""The temperature of an attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from couplings import made, random_scores
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention

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


READS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "query is key": lambda q, v, rel: attention(q, q, v),
    "query is key and value": lambda q, v, rel: attention(q, q, q),
    "query is value": lambda q, v, rel: attention(q, v, q),
    "positions relative to the query": lambda q, v, rel: attention(q, v, v, attn_mask=q @ rel.t()),
    "query is added": lambda q, v, rel: attention(q, v, v) + q,
    "two of one query": lambda q, v, rel: attention(q, v, v) + 0.5 * attention(q, v.flip(2), v),
}


class Shared(nn.Module):
    """Four heads of four, whose query is read for more than one attention's logits."""

    def __init__(self, reads: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.v, self.o = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 6)
        self.heads, self.dim = 4, 4
        self.rel, self.reads = nn.Parameter(torch.randn(5, 4)), reads

    def forward(self, x: Tensor) -> Tensor:
        q, v = (t.reshape(*t.shape[:2], self.heads, self.dim).transpose(1, 2) for t in (self.q(x), self.v(x)))
        return self.o(self.reads(q, v, self.rel).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention_of", ["heads", "head_dim", "both"])
@pytest.mark.parametrize("case", READS)
def test_a_query_that_is_read_elsewhere(case: str, attention_of: str) -> None:
    """Its temperature cannot be set in its rows, so heads go; two attentions of one query want the same factor."""
    torch.manual_seed(0)
    model = Shared(READS[case]).eval()
    small = fxprune.prune(
        model, "random", 0.3, example_inputs=torch.randn(2, 5, 8), attention=attention_of, progress=False
    )
    assert all(c.ok for c in fxprune.report(small).checks)
    if attention_of == "head_dim" and case == "two of one query":
        assert (small.heads, small.q.weight.shape[0] % 4) == (4, 0)
        assert small.dim < 4
    elif case == "positions relative to the query":
        assert (small.heads, small.dim) == (3, 4)
