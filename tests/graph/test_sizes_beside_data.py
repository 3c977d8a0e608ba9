"""A width beside a size that depends on data follows all the same (ViLT's attention over the tokens that are valid)."""

import torch
from torch import Tensor, nn

import fxprune


class Heads(nn.Module):
    """An attention over the rows that a mask leaves, whose last view is made of a size of data and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.qkv, self.o = nn.Linear(6, 16), nn.Linear(16, 3 * 32), nn.Linear(32, 4)
        self.heads, self.dim, self.all = 4, 8, 32

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        chosen = mask.nonzero()
        x = self.i(x)[chosen[:, 0], chosen[:, 1]].view(1, -1, 16)
        q, k, v = (t.view(1, -1, self.heads, self.dim).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = ((q @ k.mT) / self.dim**0.5).softmax(-1) @ v
        y = y.transpose(1, 2).contiguous()
        return self.o(y.view(*y.shape[:-2], self.all))


def test_heads_go_where_the_number_of_tokens_is_known_by_data_alone() -> None:
    torch.manual_seed(0)
    net, mask = Heads().eval(), torch.tensor([[1, 1, 0, 1, 0]])
    x = (torch.randn(1, 5, 6), mask)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False, strict=True)
    assert small.heads < 4
    assert small.all == small.heads * 8 == small.o.in_features
    assert fxprune.report(small).checks[0].ok
    assert small(torch.randn(1, 7, 6), torch.ones(1, 7)).shape == (1, 7, 4)
