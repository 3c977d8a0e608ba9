"""Means, spreads and extremes over what stays, by hand; and models that hold other numbers for a moment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.masking.settled import Settled, _without_chance
from fxprune.masking.statistics import (
    kept_pairs,
    masked_batch_norm,
    masked_extreme,
    masked_group_norm,
    masked_mean,
    masked_spread,
    masked_var,
)
from fxprune.masking.trials import in_float64, rounded_anew, zero_parameters, zeros_filled

X = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
M = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
STAYS = M.bool()
CHANNELS = M.view(6, 1)


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [(1,), (1, 2), (0, 1)])
def test_means_and_spreads_are_those_of_what_stays(dims: tuple[int, ...], keepdim: bool) -> None:
    left = X[:, STAYS]
    assert torch.allclose(masked_mean(X, dims, CHANNELS, keepdim), left.mean(dims, keepdim=keepdim))
    assert torch.allclose(masked_mean(X, dims, None, keepdim), X.mean(dims, keepdim=keepdim))
    for correction in (0, 1):
        var, mean = masked_var(X, dims, CHANNELS, correction, keepdim)
        assert torch.allclose(mean, left.mean(dims, keepdim=keepdim))
        assert torch.allclose(var, left.var(dims, correction=correction, keepdim=keepdim))
        for kind in ("var", "std", "var_mean", "std_mean"):
            want = getattr(torch, kind)(left, dims, correction=correction, keepdim=keepdim)
            got = masked_spread(kind, X, dims, CHANNELS, correction, keepdim)
            assert all(map(torch.allclose, got, want)) if kind.endswith("mean") else torch.allclose(got, want), kind  # type: ignore[arg-type]


def test_half_a_mask_counts_half_and_nothing_left_is_zero() -> None:
    x = torch.tensor([2.0, 8.0])
    assert masked_mean(x, (0,), torch.tensor([1.0, 0.5])).item() == pytest.approx((2 + 4) / 1.5)
    assert masked_mean(x, (0,), torch.zeros(2)).item() == 0


@pytest.mark.parametrize("kind", ["amax", "amin", "logsumexp", "prod"])
def test_what_goes_decides_no_extreme(kind: str) -> None:
    def of(x: Tensor) -> Tensor:
        return x.prod(1) if kind == "prod" else getattr(torch, kind)(x, (1,))  # type: ignore[no-any-return]

    far = torch.where(STAYS.view(6, 1), X, torch.full_like(X, -50.0 if kind == "amin" else 50.0))
    assert torch.allclose(of(masked_extreme(kind, far, CHANNELS)), of(X[:, STAYS]))
    assert torch.allclose(of(masked_extreme(kind, X, torch.ones_like(CHANNELS))), of(X))


@pytest.mark.parametrize("kind", ["amax", "amin"])
def test_extremes_of_integers(kind: str) -> None:
    x = torch.tensor([[3, -9, 4, 5, 9, 4]])
    assert getattr(masked_extreme(kind, x, M), kind)(1) == getattr(x[:, STAYS], kind)(1)


def test_pairs_leave_out_what_is_gone_and_weigh_the_rest() -> None:
    a, b = torch.arange(6.0), torch.ones(2, 6)
    m = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 1.0])
    one, other = kept_pairs(a, b, m)
    assert one.tolist() == [0, 1, 3, 5]
    assert other.tolist() == [[1, 0.5, 1, 1]] * 2


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_with_the_batchs_statistics(affine: bool) -> None:
    w, b = (torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)) if affine else (None, None)
    want = nn.functional.batch_norm(X, None, None, w, b, training=True, eps=1e-3)
    assert torch.allclose(masked_batch_norm(X, None, w, b, 1e-3), want)
    rows = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    want = nn.functional.batch_norm(X[[0, 2]], None, None, w, b, training=True, eps=1e-3)
    assert torch.allclose(masked_batch_norm(X, rows, w, b, 1e-3)[[0, 2]], want)


def test_group_norm_without_space_and_with_channels_out_of_order() -> None:
    x, place = X[:, :, 0], torch.tensor([0, 1, 0, 1, 1, 0])
    got = masked_group_norm(x, torch.ones(6, dtype=torch.float64), 2, None, None, 1e-5, place)
    order = torch.tensor([0, 2, 5, 1, 3, 4])
    want = nn.functional.group_norm(x[:, order], 2, eps=1e-5)
    assert torch.allclose(got[:, order], want)
    assert torch.allclose(
        masked_group_norm(X, torch.ones(6, dtype=torch.float64), 3, None, torch.arange(6.0).double(), 1e-5),
        nn.functional.group_norm(X, 3, None, torch.arange(6.0).double(), 1e-5),
    )


# ---- other numbers for a moment -------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def test_every_weight_is_off_by_its_last_bit_and_then_itself_again() -> None:
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    eps = torch.finfo(torch.float32).eps
    with rounded_anew(model):
        moved = {
            n: ((t.double() - before[n].double()) / before[n].double()).flatten() for n, t in model.named_parameters()
        }
        relative = torch.cat(list(moved.values()))
        own = torch.cat([before[n].flatten() for n in moved]) != 0
        assert torch.all((relative[own].abs() > 0.4 * eps) & (relative[own].abs() < 1.6 * eps))
        assert 0.2 < float((relative[own] > 0).double().mean()) < 0.8
        assert model[1].num_batches_tracked == before["1.num_batches_tracked"]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_models_are_in_float64_within_and_the_same_memory_after() -> None:
    model, other = net(), net()
    places = [t.data_ptr() for t in model.state_dict().values()]

    def types(of: nn.Module) -> set[torch.dtype]:
        return {t.dtype for t in of.state_dict().values() if t.is_floating_point()}

    with in_float64(model, other):
        assert types(model) == types(other) == {torch.float64}
    assert types(model) == types(other) == {torch.float32}
    assert [t.data_ptr() for t in model.state_dict().values()] == places


def test_what_is_all_zero_is_filled_alike_in_a_pruned_copy() -> None:
    model, x = net().eval(), torch.randn(3, 4)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    graph = fxprune.trace(model, x)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    small, keep = fxprune.rewrite(model, graph, plan).model, plan.kept(graph)
    names = zero_parameters(model, graph, small, keep)
    assert sorted(names) == ["1.bias", "2.bias", "2.weight"]
    with zeros_filled(names, graph, model, small, keep):
        kept = torch.from_numpy(keep[graph.groups[0].components])
        assert model[2].weight.abs().min() > 0
        assert model[2].weight.std() < 1  # about as large as a layer's own
        assert torch.equal(small.get_parameter("2.weight"), model[2].weight[:, kept])
        assert torch.equal(small.get_parameter("1.bias"), model[1].bias[kept])
    assert not model[2].weight.any()
    assert not small.get_parameter("2.weight").any()
    with torch.no_grad():
        small.get_parameter("2.bias").add_(1)
    assert zero_parameters(model, graph, small, keep) == [n for n in names if n != "2.bias"]


DRAWS: dict[str, Any] = {
    "rand": lambda: torch.rand(5),
    "rand_like": lambda: torch.rand_like(torch.empty(5)),
    "randn": lambda: torch.randn(5),
    "normal_": lambda: torch.empty(5).normal_(),
    "uniform_": lambda: torch.empty(5).uniform_(),
    "exponential_": lambda: torch.empty(5).exponential_(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_a_half(name: str) -> None:
    with Settled():
        assert DRAWS[name]().tolist() == [0.5] * 5


def test_dropout_drops_nothing_and_batch_norms_use_their_averages() -> None:
    x = torch.randn(4, 6)
    norm = nn.BatchNorm1d(6)
    norm.running_mean.fill_(0.25)  # type: ignore[union-attr]
    fresh = nn.BatchNorm1d(6, track_running_stats=False)
    with Settled():
        assert torch.equal(nn.functional.dropout(x, 0.5, training=True), 2 * x)  # all of it, at dropout's scale
        assert torch.bernoulli(torch.full((3,), 0.01)).tolist() == [1, 1, 1]
        assert torch.allclose(norm(x), (x - 0.25) / (1 + norm.eps) ** 0.5)
        own = fresh(x)
    assert torch.allclose(own.mean(0), torch.zeros(6), atol=1e-6)  # it has no averages
    assert not torch.equal(nn.functional.dropout(x, 0.5, training=True), 2 * x)


def test_attention_on_any_device_is_settled_without_dropout() -> None:
    """Kernels of GPUs take the rate as a number; `dropout` of a recurrent layer is one, too, and a flag is none."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    args, kwargs = _without_chance(flash, "_scaled_dot_product_flash_attention", (X, X, X, 0.5, True), {"scale": 0.5})
    assert args[3:] == (0.0, True)
    assert kwargs == {"scale": 0.5}
    assert _without_chance(flash, "", (X, X, X), {"dropout_p": 0.5})[1] == {"dropout_p": 0.0}
