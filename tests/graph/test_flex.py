"""FlexAttention on the CPU: heads go where the functions that it calls count none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import fxprune

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.06])


class Flex(nn.Module):
    def __init__(self, score: Any = None, mask: Any = None, key_heads: int = 4) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(8, 32), nn.Linear(8, 2 * 8 * key_heads)
        self.p, self.score, self.mask = nn.Linear(32, 4), score, mask

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, -1, 8).transpose(1, 2) for y in (self.q(x), *self.kv(x).chunk(2, -1)))
        blocks = None if self.mask is None else create_block_mask(self.mask, None, None, t, t, device="cpu")
        grouped = k.shape[1] < q.shape[1]
        y = flex_attention(q, k, v, score_mod=self.score, block_mask=blocks, enable_gqa=grouped)
        out: Tensor = self.p(y.transpose(1, 2).reshape(b, t, -1))  # type: ignore[union-attr]
        return out


NETS: dict[str, tuple[Callable[[], Flex], bool]] = {
    "distances, causal": (lambda: Flex(lambda s, b, h, i, j: s - (i - j).abs(), lambda b, h, i, j: i >= j), True),
    "grouped": (lambda: Flex(key_heads=2), True),
    "slopes in a table": (lambda: Flex(lambda s, b, h, i, j: s - (i - j).abs() * SLOPES[h]), False),
}


@pytest.mark.parametrize("name", sorted(NETS))
def test_heads(name: str) -> None:
    torch.manual_seed(0)
    make, free = NETS[name]
    model, x = make(), torch.randn(2, 5, 8)
    graph = fxprune.trace(model, x)
    heads = [g for g in graph.groups if g.kind == "heads"]
    assert bool(heads) == free
    if not free:
        return
    small = fxprune.prune(model, "magnitude", 0.5, example_inputs=x, progress=False)
    made = fxprune.report(small)
    assert made.forward == "module"
    assert made.plan.achieved > 0.3
    assert all(c.ok for c in fxprune.verify(model, small, graph, made.plan))
