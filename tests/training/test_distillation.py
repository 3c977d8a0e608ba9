"""Distillation: the terms by hand. Whole runs with it are in test_run.py."""

from __future__ import annotations

import torch


def test_logits_are_compared_as_distributions() -> None:
    from fxprune.training.terms import divergence

    a, b = torch.randn(4, 5), torch.randn(4, 5)
    p, q = (b / 2).softmax(-1), (a / 2).softmax(-1)
    want = 4 * (p * (p / q).log()).sum(-1).mean()
    assert torch.allclose(divergence(a, b, 2.0), want, atol=1e-6)
    assert divergence(a, a + 3, 1.0).abs() < 1e-6
