"""How much the loss depends on what a layer gives, by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.scoring.context import Context
from fxprune.scoring.dependence import dependence


def of(net: nn.Module, batch: Any, loss: Any = None, **reads: int) -> dict[str, Tensor]:
    graph = analyse(net.eval(), as_inputs(batch))
    ctx = Context(graph, net, "test", [batch], loss, 0, False)
    found = dependence(ctx, batch, {n.replace("_", "."): axis for n, axis in reads.items()})
    return {name: calls[0] for name, calls in found.items() if len(calls) == 1}


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 1)).double()


def test_a_squared_error_is_curved_alike_everywhere_whatever_the_error() -> None:
    net, x = chain(), torch.randn(5, 3, dtype=torch.float64)
    far = torch.tensor([0.0, 1.0, 10.0, 100.0, 0.0], dtype=torch.float64)[:, None]
    found = of(net, x, lambda model, batch: (model(batch) - far).square().mean())
    curvature = torch.full((5,), 2 / 5, dtype=torch.float32)  # of a mean over five samples
    reads = net[2].weight.detach().square().sum().float()  # how the answer moves with what layer 1 gives
    torch.testing.assert_close(found["2.weight"], curvature)
    torch.testing.assert_close(found["1.weight"], curvature * reads)


def test_a_classifier_depends_on_what_it_is_in_doubt_about() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), 3 * torch.randn(6, 3, dtype=torch.float64)
    labels = torch.zeros(6, dtype=torch.long)
    found = of(net, x, lambda model, batch: F.cross_entropy(model(batch), labels))
    p = net(x).softmax(1).detach()
    torch.testing.assert_close(found["1.weight"], (2 * p[:, 0] * p[:, 1] / 6).float())  # of p(1−p) (1, −1; −1, 1)


class FirstToken(nn.Module):
    """A stream of tokens of which the first is read."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out, self.head = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 3)
        self.first = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.out(torch.tanh(self.inside(x)))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


def test_places_that_nothing_reads_do_not_count() -> None:
    torch.manual_seed(0)
    net, x = FirstToken(), torch.randn(4, 5, 6)
    found = of(net, x)
    for name in ("inside.weight", "out.weight"):
        rows = found[name].reshape(4, 5)
        assert bool((rows[:, 0] > 0).all())
        assert not rows[:, 1:].any()
    assert bool((found["head.weight"] > 0).all())


class OnePlace(nn.Module):
    """An image of which one place is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))[:, :, 1, 2]  # type: ignore[no-any-return]


def test_places_of_a_convolution_are_those_of_its_output() -> None:
    torch.manual_seed(0)
    found = of(OnePlace(), torch.randn(2, 2, 8, 8))
    assert found["b.weight"].reshape(2, 4, 4).nonzero().tolist() == [[0, 1, 2], [1, 1, 2]]
    places = found["a.weight"].reshape(2, 8, 8)[0].nonzero()
    assert places.amin(0).tolist() == [1, 3]
    assert places.amax(0).tolist() == [3, 5]


class OwnLoss(nn.Module):
    """A model that computes its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).square().mean()  # type: ignore[no-any-return]


def test_of_a_loss_without_curvature_the_gradient_counts() -> None:
    torch.manual_seed(0)
    net, x = OwnLoss(), torch.randn(5, 3)
    found = of(net, x, lambda model, batch: model(batch))
    z = net.b(net.a(x)).detach()[:, 0]
    torch.testing.assert_close(found["b.weight"], (2 * z / 5).square())


def test_what_the_loss_writes_into_is_its_own_and_the_model_is_left_as_it_was() -> None:
    net, x = chain().float(), torch.randn(5, 3)
    before = [p.clone() for p in net.parameters()]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sub_(1.0).square().mean()  # type: ignore[no-any-return]

    found = of(net, x, loss)
    torch.testing.assert_close(found["2.weight"], torch.full((5,), 2 / 5))
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(net.parameters(), before, strict=True))
    assert not net._forward_hooks


def test_a_loss_that_asks_nothing_of_the_model_tells_nothing() -> None:
    net, x = chain().float(), torch.randn(5, 3)
    assert of(net, x, lambda model, batch: model[0](batch).square().mean()) == {}
