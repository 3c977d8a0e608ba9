"""The laws that fxprune expects of a criterion, and one number worked out by hand."""

import torch
from fxprune_example import Variance
from torch import nn

import fxprune
from fxprune.testing import check_criterion


def test_it_is_a_criterion() -> None:
    check_criterion(Variance, degrees={"weights": 2})


def test_by_hand() -> None:
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    net.load_state_dict({"0.weight": torch.tensor([[3.0], [1.0]]), "1.weight": torch.tensor([[2.0, 6.0]])})
    scores = fxprune.score(fxprune.trace(net, torch.ones(1, 1)), net, "variance")
    assert scores.values["0.weight:0"].tolist() == [1.0 + 4.0, 1.0 + 4.0]
