"""Learning rates by the names of diffusers and transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from transformers import get_scheduler as of_transformers

import fxprune
from fxprune import Training


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("linear", get_scheduler),
        ("cosine", get_scheduler),
        ("polynomial", get_scheduler),
        ("inverse_sqrt", of_transformers),
    ],
)
def test_rates_are_those_of_the_library(name: str, make: Any) -> None:
    optimizer = torch.optim.SGD([torch.zeros(())], lr=1.0)
    theirs = make(name, optimizer, num_warmup_steps=3, num_training_steps=10)
    ours = Training(8, after=2, warmup=3, schedule=name)
    for step in range(10):
        assert ours.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        theirs.step()


def test_a_function_of_the_step_is_taken_as_it_is() -> None:
    assert [Training(4, schedule=lambda step: 1 / (1 + step)).rate(k) for k in (0, 1)] == [1.0, 0.5]


def test_a_name_nobody_knows_is_refused_when_it_is_given() -> None:
    with pytest.raises(fxprune.InputsError, match=r"schedule='cosin' is unknown; there are constant, .*cosine.*linear"):
        Training(4, schedule="cosin")
    with pytest.raises(fxprune.InputsError, match="schedule='reduce_lr_on_plateau' cannot be made of steps alone"):
        Training(4, schedule="reduce_lr_on_plateau")
