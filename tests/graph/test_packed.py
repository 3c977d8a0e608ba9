"""Packed sequences are captured: recurrent nets as people train them, on sentences of several lengths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from proofs import proved
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.masking.masked_run import run_masked


class Tagger(nn.Module):
    """Lengths from a mask, sentences in any order, padding up to the given length."""

    def __init__(self, layer: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.e, self.g = nn.Embedding(20, 12), layer(12, 16, batch_first=True, **options)
        width = options.get("proj_size", 16) * (2 if options.get("bidirectional") else 1)
        self.o = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1).cpu()
        packed = pack_padded_sequence(self.e(ids), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.g(packed)[0], True, padding_value=-1.0, total_length=ids.shape[1])
        return self.o(out * mask[..., None])


class Last(nn.Module):
    """The last states, with a first state of the caller's, and a layer on what is packed; time comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.g, self.o = nn.Linear(8, 12), nn.LSTM(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        state = x.new_zeros(1, x.shape[1], self.g.hidden_size)
        packed = pack_padded_sequence(self.i(x), lengths.tolist())
        packed = PackedSequence(packed.data.relu(), packed.batch_sizes)
        out, (_, cell) = self.g(packed, (state, state))
        return self.o(out.data), self.o(cell[-1])


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Tagger(nn.LSTM),
    "gru, both ways": lambda: Tagger(nn.GRU, bidirectional=True),
    "rnn, two layers": lambda: Tagger(nn.RNN, num_layers=2, dropout=0.1),
    "projected": lambda: Tagger(nn.LSTM, proj_size=6),
}
MASK = (torch.arange(6)[None] < torch.tensor([3, 5, 1])[:, None]).long()


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers_on_packed_sequences(name: str) -> None:
    torch.manual_seed(0)
    assert proved(LAYERS[name](), (torch.randint(0, 20, (3, 6)), MASK), 0.4) == ()


def test_the_graph_computes_what_the_model_does() -> None:
    torch.manual_seed(0)
    model, x = Last().eval(), as_inputs((torch.randn(5, 3, 8), torch.tensor([5, 3, 1])))
    got = run_masked(analyse(model, x), model, x)
    for a, b in zip(got, model(*x[0]), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_pruned_whole_trained_and_run_on_other_lengths() -> None:
    torch.manual_seed(0)
    model, x = Last(), (torch.randn(5, 3, 8), torch.tensor([5, 3, 1]))
    small = fxprune.prune(model, "magnitude", 0.5, example_inputs=x, progress=False)
    made = fxprune.report(small)
    assert made.forward == "module"
    assert made.plan.achieved > 0.45
    assert all(c.ok for c in fxprune.verify(model, small, fxprune.trace(model, x), made.plan))
    small.train()(torch.randn(7, 2, 8), torch.tensor([7, 2]))[0].sum().backward()
    assert all(p.grad is not None for p in small.parameters())
