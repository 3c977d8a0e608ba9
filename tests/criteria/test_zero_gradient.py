"""A loss whose gradient is zero tells nothing about any channel: an error of every criterion that reads gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune


@pytest.mark.parametrize("criterion", ["taylor", "snip", "fisher", "gradflow", "gradflow_preserving"])
@pytest.mark.parametrize("loss", [lambda m, b: m(b).sum() * 0, lambda m, b: (m(b) - 1e6).relu().sum()])
def test_it_is_refused(criterion: str, loss: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    data = [torch.randn(3, 4), torch.randn(3, 4)]
    with pytest.raises(fxprune.InputsError, match=rf"{criterion}'.*gradient of the loss is zero .*'magnitude'"):
        fxprune.prune(net, criterion, 0.3, example_inputs=data[0], data=data, loss=loss, progress=False)


def test_one_batch_that_tells_is_enough() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    data = [torch.zeros(3, 4), torch.randn(3, 4)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().sum() * batch.abs().sum()

    small = fxprune.prune(net, "taylor", 0.3, example_inputs=data[1], data=data, loss=loss, progress=False)
    assert fxprune.report(small).plan.achieved > 0.2
