"""What is taken over channels is taken over those that stay: softmaxes, filters along channels, ranges."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from proofs import proved
from torch import Tensor, nn

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.masking.masked_run import MaskedRun
from fxprune.masking.statistics import masked_filter, masked_softmax


class Gated(nn.Module):
    """A layer, a function of all its channels, and a layer that reads it."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.gate = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 4), gate

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.gate(self.b(self.a(x).relu())))


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda h: h.softmax(-1),
    "softmax of logits over a temperature": lambda h: F.softmax(h.transpose(1, 2) / 0.5, dim=1).transpose(1, 2),
    "log_softmax": lambda h: torch.log_softmax(h, -1),
    "in another type": lambda h: F.softmax(h.half(), -1, dtype=torch.float32),
    "the largest": lambda h: h * (h >= h.topk(5, -1)[0][..., -1:]),
    "the smallest": lambda h: h * torch.topk(h, 4, dim=-1, largest=False).values.mean(-1, keepdim=True),
    "aminmax": lambda h: h / (torch.aminmax(h, dim=-1, keepdim=True)[1] - torch.aminmax(h, dim=-1, keepdim=True).min),
    "aminmax of all": lambda h: h / (h.aminmax()[1] - h.aminmax()[0]),
}


@pytest.mark.parametrize("name", sorted(GATES))
def test_functions_of_all_channels(name: str) -> None:
    torch.manual_seed(0)
    reduced = proved(Gated(GATES[name]), torch.randn(2, 5, 8), 0.4)
    assert "of 24 channels" in reduced[0]


def test_as_many_stay_as_are_asked_for() -> None:
    x = torch.randn(2, 5, 8)
    small = fxprune.prune(Gated(GATES["the largest"]), "random", example_inputs=x, ratios={"b": 0.9}, progress=False)
    assert small.get_submodule("b").out_features == 5


def test_places_of_the_largest_hold_the_channels() -> None:
    graph = fxprune.trace(Gated(lambda h: h * (torch.arange(24) > h.topk(5, -1)[1][..., :1])), torch.randn(2, 5, 8))
    assert "b.weight:0" not in {g.name for g in graph.groups}


class Attention(nn.Module):
    """Learned tokens that the inputs attend to: their softmax is over tokens, which are no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.k, self.q, self.o = nn.Parameter(torch.randn(6, 16)), *(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.o((self.q(x) @ self.k(self.tokens).t()).softmax(-1) @ self.tokens)


def test_tokens_are_no_channels() -> None:
    graph = fxprune.trace(Attention(), torch.randn(2, 5, 16))
    (held,) = [h for h in graph.frozen() if h.tensor == "tokens" and h.axis == 0]
    assert held.cause == "mixes along the axis"


class ChannelAttention(nn.Module):
    """ECA: a filter slides over the means of the channels."""

    def __init__(self, slide: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.a, self.b, self.o = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 24), (24, 24), (24, 3)))
        self.slide, self.shape = slide, shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        gate = self.slide(x.mean((2, 3)).view(len(x), *self.shape))
        return self.o(x * gate.reshape(len(x), -1, 1, 1).sigmoid())


SLIDES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(1, 1, 5, padding=2, bias=False), (1, -1)),
    "same": (lambda: nn.Conv1d(1, 1, 3, padding="same"), (1, -1)),
    "dilated": (lambda: nn.Conv1d(1, 1, 3, padding=2, dilation=2), (1, -1)),
    "rows": (lambda: nn.Conv2d(1, 1, (3, 1), padding=(1, 0)), (1, -1, 1)),
    "columns": (lambda: nn.Conv2d(1, 1, (1, 5), padding=(0, 2)), (1, 1, -1)),
}


@pytest.mark.parametrize("name", sorted(SLIDES))
def test_filters_slide_over_what_stays(name: str) -> None:
    torch.manual_seed(0)
    make, shape = SLIDES[name]
    reduced = proved(ChannelAttention(make(), shape), torch.randn(2, 3, 6, 6), 0.4)
    assert "of 24 channels" in reduced[0]


@pytest.mark.parametrize(
    "slide",
    [
        nn.Conv1d(1, 1, 3, padding=1, stride=2),
        nn.Conv1d(1, 1, 3),
        nn.Conv1d(1, 1, 4, padding="same"),
        nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 3, padding=1)),
        nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
    ],
    ids=["steps", "fewer", "even", "several", "circular"],
)
def test_other_filters_hold_the_channels(slide: nn.Module) -> None:
    class Mean(ChannelAttention):
        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x).relu())
            return self.o(x * self.slide(x.mean((2, 3))[:, None]).mean((1, 2))[:, None, None, None])

    graph = fxprune.trace(Mean(slide, ()), torch.randn(2, 3, 6, 6))
    assert {h.axis for h in graph.frozen() if h.tensor == "b.weight"} >= {0}
    assert "b.weight:0" not in {g.name for g in graph.groups}


def test_exact_norms_keep_such_channels() -> None:
    model, x = ChannelAttention(nn.Conv1d(1, 1, 3, padding=1), (1, -1)), torch.randn(2, 3, 6, 6)
    small = fxprune.prune(model, "random", 0.3, example_inputs=x, exact_norms=True, progress=False)
    assert small.get_submodule("b").out_channels == 24
    assert fxprune.report(small).reduced == ()


def test_what_nobody_reads_is_not_told() -> None:
    class Idle(Gated):
        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x).relu())
            h.mean(-1)
            h.softmax(-1).amax(-1)
            return self.c(h)

    assert proved(Idle(torch.relu), torch.randn(2, 5, 8)) == ()


def test_softmax_moves_continuously_and_does_not_overflow() -> None:
    x = torch.tensor([[1.0, 2.0, 500.0, 3.0]])
    m = torch.tensor([1.0, 1.0, 0.0, 1.0])
    kept = torch.tensor([0, 1, 3])
    assert torch.allclose(masked_softmax(x, 1, m)[:, kept], x[:, kept].softmax(1))
    assert torch.allclose(masked_softmax(x, 1, m, logarithm=True)[:, kept], x[:, kept].log_softmax(1))
    y = x.clamp(max=4).requires_grad_()
    ahead = masked_softmax(y, 1, m + 1e-6 * (m == 0))
    assert torch.allclose(ahead[:, kept], masked_softmax(y, 1, m)[:, kept], atol=1e-5)
    (gradient,) = torch.autograd.grad(ahead[0, 0], y)
    assert torch.isfinite(gradient).all()


def test_filter_moves_continuously() -> None:
    torch.manual_seed(0)
    x, taps = torch.randn(2, 1, 9).double(), torch.randn(5).double()
    plain = F.conv1d(x, taps[None, None], padding=4, dilation=2)
    assert torch.allclose(masked_filter(x, 2, torch.ones(9).double(), taps, None, 2), plain)
    for at in (0.0, 0.3, 1.0):
        m = torch.ones(9).double()
        m[4] = at
        near = m.clone()
        near[4] += 1e-7 if at < 1 else -1e-7
        both = [masked_filter(x, 2, k, taps, None, 2) for k in (m, near)]
        assert torch.allclose(*both, atol=1e-5)


def test_masks_between_zero_and_one_run() -> None:
    """The graph and the live model agree for any mask (`proved` asks that); here: every number is finite."""
    model, x = ChannelAttention(nn.Conv1d(1, 1, 3, padding=1), (1, -1)), torch.randn(2, 3, 6, 6)
    graph = analyse(model.eval(), as_inputs(x))
    mask = torch.rand(int(graph.component.max()) + 1)
    out: list[Any] = MaskedRun(graph, model, mask)(as_inputs(x))
    assert torch.isfinite(out[0]).all()
