"""Norms under a binary mask are the norms of what stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.masking.statistics import masked_filter, masked_group_norm, masked_layer_norm


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_under_a_binary_mask_is_the_smaller_norm(groups: int) -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 8, 3, 3), torch.rand(8), torch.rand(8)
    gone = torch.arange(8) % (8 // groups) == 0
    keep = ~gone
    full = masked_group_norm(x, keep.float(), groups, w, b, 1e-5)[:, keep]
    small = nn.functional.group_norm(x[:, keep], groups, w[keep], b[keep], 1e-5)
    assert torch.allclose(full, small, atol=1e-5)
    ones = masked_group_norm(x, torch.ones(8), groups, w, b, 1e-5)
    assert torch.allclose(ones, nn.functional.group_norm(x, groups, w, b, 1e-5), atol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
def test_layer_norm_under_a_binary_mask_is_the_smaller_norm(centred: bool) -> None:
    torch.manual_seed(0)
    x, keep = torch.randn(2, 3, 8), torch.rand(8) < 0.6
    own = nn.functional.layer_norm if centred else nn.functional.rms_norm
    small = own(x[..., keep], (int(keep.sum()),), eps=1e-5)
    full = masked_layer_norm(x, (2,), keep.float(), None, None, 1e-5, centred)[..., keep]
    assert torch.allclose(full, small, atol=1e-5)


@pytest.mark.parametrize("biased", [True, False])
def test_a_filter_over_a_binary_mask_is_that_over_what_stays(biased: bool) -> None:
    torch.manual_seed(0)
    x, taps, keep = torch.randn(2, 8).double(), torch.randn(3).double(), torch.rand(8) < 0.6
    bias = torch.tensor([0.5]).double() if biased else None
    small = nn.functional.conv1d(x[:, None, keep], taps.view(1, 1, 3), bias, padding=1)[:, 0]
    assert torch.allclose(masked_filter(x, 1, keep.double(), taps, bias, 1)[:, keep], small)
