"""Which distance to the dense model's outputs: told by what the loss makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.scoring.autograd import softmax_axes
from fxprune.training.distillation import Distillation, Teacher

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
KINDS = ("auto", "mse", "kl")
Loss = Callable[[Tensor], Tensor]

ALONG: dict[str, tuple[Loss, int | None]] = {
    "cross entropy": (lambda z: F.cross_entropy(z, Y), 1),
    "smoothed": (lambda z: F.cross_entropy(z, Y, label_smoothing=0.1), 1),
    "weighed by sample": (lambda z: (F.cross_entropy(z, Y, reduction="none") * torch.arange(6)).mean(), 1),
    "by hand, last axis": (lambda z: -z.log_softmax(-1)[torch.arange(6), Y].mean(), -1),
    "in double precision": (lambda z: F.cross_entropy(z.double(), Y), 1),
    "and a penalty": (lambda z: F.cross_entropy(z, Y) + 0.1 * z.square().mean(), 1),
    "of other numbers than the output": (lambda z: F.cross_entropy(3 * z, Y), None),
    "squared error": (lambda z: z.square().mean(), None),
    "sigmoid": (lambda z: F.binary_cross_entropy_with_logits(z[:, 0], (Y > 0).float()), None),
}


@pytest.mark.parametrize("name", ALONG)
def test_the_axis_of_the_log_softmax(name: str) -> None:
    of, axis = ALONG[name]
    z = nn.Linear(4, 3)(X)
    assert softmax_axes(of(z), [z]) == [axis]


def test_classes_of_pixels() -> None:
    z = nn.Conv2d(1, 3, 1)(torch.randn(2, 1, 5, 5))
    assert softmax_axes(F.cross_entropy(z, torch.zeros(2, 5, 5, dtype=torch.long)), [z]) == [1]


def test_one_of_several_outputs_of_the_same_op() -> None:
    a, b = nn.Linear(4, 6)(X).chunk(2, -1)
    assert softmax_axes(F.cross_entropy(b, Y) + a.square().mean(), [a, b]) == [None, 1]


def test_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        z = nn.Linear(4, 3)(X)
        assert softmax_axes(F.cross_entropy(z, Y), [z]) == [1]


def test_a_softmax_inside_the_model_is_none_of_its_outputs() -> None:
    z = nn.Linear(3, 3)(nn.Linear(4, 3)(X).log_softmax(-1))
    assert softmax_axes(z.square().mean(), [z]) == [None]


@pytest.mark.parametrize(("task", "kind"), [(F.cross_entropy, "kl"), (lambda z, y: z.square().mean(), "mse")])
def test_auto_is_the_kind_that_the_loss_asks_for(task: Any, kind: str) -> None:
    student, dense = nn.Linear(4, 3), nn.Linear(4, 3)
    found = {k: Teacher(dense, None, Distillation(kind=k)).loss(student, lambda: task(student(X), Y)) for k in KINDS}
    assert found["auto"] == found[kind]
    assert found["auto"] != found["kl" if kind == "mse" else "mse"]


def test_the_divergence_is_taken_along_the_axis_of_the_classes() -> None:
    student, dense = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)
    x = torch.randn(2, 1, 4, 5)
    y = torch.zeros(2, 4, 5, dtype=torch.long)
    told = Teacher(dense, None, Distillation()).loss(student, lambda: F.cross_entropy(student(x), y))
    p, q = dense(x).softmax(1), student(x).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    assert float(told) == pytest.approx(float(F.cross_entropy(student(x), y) + divergence), rel=1e-5)
