"""What a pruner does at a step, and what it remembers: batches, random numbers, weights that shrink."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxprune
from fxprune.schedulers.group_lasso import GroupLasso
from fxprune.schedulers.iterative import Iterative

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def pruner(scheduler: Any, criterion: Any = "magnitude", **options: Any) -> fxprune.Pruner[nn.Module]:
    return fxprune.Pruner(net(), scheduler, criterion, 0.5, example_inputs=X, **{"steps": 6, **options})


def test_group_lasso_shrinks_the_weights_that_will_go_and_leaves_the_others() -> None:
    held = pruner(GroupLasso(most=0.4, until=1.0), steps=4)
    before = {n: p.detach().clone() for n, p in held.net.named_parameters()}
    for _ in range(3):
        held.step()
    shrunk = (1 - 0.1) * (1 - 0.2) * (1 - 0.3)  # a quarter, a half, and three quarters of 0.4
    (gone,) = held.flow.plan.removed.values()
    left = [c for c in range(8) if c not in gone]
    assert len(gone) == 4
    now = dict(held.net.named_parameters())
    for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        for channels, factor in ((list(gone), shrunk), (left, 1.0)):
            at = torch.tensor(channels)
            assert torch.allclose(now[name].index_select(axis, at), factor * before[name].index_select(axis, at)), name
    assert torch.equal(now["2.bias"], before["2.bias"])
    held.step()
    assert held.flow.decay is None


def drawn(**options: Any) -> list[list[float]]:
    """The random numbers that a criterion draws at every refresh of a run."""
    seen: list[list[float]] = []

    def random(ctx: Any) -> dict[str, Tensor]:
        seen.append(torch.rand(3, generator=ctx.generator).tolist())
        return {n: p.abs() for n, p in ctx.parameters.items()}

    held = pruner(Iterative(rounds=3, until=1.0), random, **options)
    while not held.done:
        held.step()
    return seen


def test_every_refresh_draws_anew_and_the_seed_repeats_all_of_them() -> None:
    first = drawn(seed=0)
    assert len(first) == 3
    assert len({tuple(x) for x in first}) == 3
    assert drawn(seed=0) == first
    assert drawn(seed=1000) != first


def scored_at(resumed: bool) -> list[float]:
    """What the second round's criterion sees of its batches, straight through or by way of a state."""

    def made() -> fxprune.Pruner[nn.Module]:
        return pruner(Iterative(rounds=2, until=1.0), "taylor", loss=loss, remember=3)

    held = made()
    for k in range(3):
        held.step(X + k)
    assert held.flow.due
    if resumed:
        state = held.state_dict()
        held = made()
        held.load_state_dict(state)
    seen: list[float] = []
    held.net.register_forward_pre_hook(lambda _, args: seen.append(float(args[0][0, 0])))
    held.step(X + 9)
    return seen


def test_a_resumed_pruner_scores_by_the_batches_that_it_remembers() -> None:
    straight = scored_at(resumed=False)
    assert len(straight) == 3
    assert scored_at(resumed=True) == straight


def test_a_batch_that_is_a_loss_is_not_remembered() -> None:
    held = pruner("one_shot", steps=2)
    held.step(torch.tensor(3.0))
    assert not held.batches
    assert held.history.column("loss").tolist() == [3.0]
    held.step(X, loss=2.0)
    assert len(held.batches) == 1
    assert held.history.column("loss").tolist() == [3.0, 2.0]


def test_a_mask_has_one_number_for_each_channel_and_one_for_what_cannot_go() -> None:
    held = pruner("one_shot", steps=1)
    assert (held.mask == 1).all()
    held.step()
    (group,) = held.graph.groups
    assert held.mask[0] == 1
    assert np.array_equal(np.flatnonzero(held.mask[group.components] == 0), list(held.flow.plan.removed[group.name]))
