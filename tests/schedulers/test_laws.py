"""The laws of energy and schedulers, and a run from the first step to the dense model."""

from __future__ import annotations

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.schedulers.group_lasso import GroupLasso
from fxprune.schedulers.iterative import Iterative
from fxprune.schedulers.one_shot import OneShot
from fxprune.schedulers.shapes import SHAPES
from fxprune.schedulers.soft import Soft, SoftFlow
from fxprune.training.scheduler import Problem, Scheduler

SCHEDULERS: dict[str, Scheduler] = {
    "one_shot": OneShot(),
    "iterative": Iterative(rounds=5),
    "soft": Soft(),
    "soft, coarse": Soft(coarse=True),
    "group_lasso": GroupLasso(),
}


class Net(nn.Module):
    """A group norm, a residual stream, a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 24, 1)
        self.back, self.layer, self.head = nn.Conv2d(24, 16, 1), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(torch.relu(self.conv(torch.relu(self.norm(x)))))
        return self.head(self.layer(x.mean((2, 3))))


IMAGES = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.mean((2, 3)).sum(1, keepdim=True)).square().mean()


def problem(ratio: float = 0.4, steps: int = 60, of: str = "params") -> Problem:
    torch.manual_seed(0)
    return Problem(analyse(Net().eval(), ((IMAGES[:2],), {})), ratio, steps, of)


def random_values(p: Problem, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.normal(size=len(g)) for g in p.graph.groups}


# ---- schedulers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_rise_from_zero_to_one(name: str) -> None:
    values = [SHAPES[name](t) for t in np.linspace(0, 1, 21)]
    assert values[0] == 0
    assert values[-1] == pytest.approx(1)
    assert all(a < b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("of", ["params", "macs"])
def test_every_run_ends_binary_and_on_budget(name: str, of: str) -> None:
    p = problem(0.4, 60, of)
    flow = SCHEDULERS[name].begin(p)
    with pytest.raises(fxprune.PluginError, match="60 of 60 steps are left"):
        _ = flow.plan
    seed = 0
    while not flow.done:
        if flow.due:
            flow.refresh(random_values(p, seed := seed + 1))
        mask = flow.step()
        assert mask.shape == (len(p.components),)
        assert ((mask >= 0) & (mask <= 1)).all()
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert np.array_equal(mask, p.mask(flow.plan))
    assert flow.plan.achieved == pytest.approx(0.4, abs=0.02)
    assert 1 - p.remaining(mask) == pytest.approx(flow.plan.achieved)


def test_soft_masks_move_continuously_and_downhill_between_refreshes() -> None:
    p = problem(steps=200)
    flow = Soft(pace=0.2, until=0.5, settle=0.6, refreshes=20).begin(p)
    assert isinstance(flow, SoftFlow)
    seed = 0
    while not flow.done:
        if flow.due:
            flow.refresh(random_values(p, seed := seed + 1))
            before = None
        old, chosen = flow.mask.copy(), flow.chosen
        now = flow.step().copy()
        assert np.abs(now - old).max() <= flow.most + 1e-12 <= 1 / (0.2 * 200 - 1) + 1e-9
        if flow.chosen is chosen:
            energy = flow.options.energy.value(now, flow.state)
            assert before is None or energy <= before + 1e-9
            before = energy
        else:
            before = None
    assert seed == 20


def test_a_channel_whose_score_recovers_regrows() -> None:
    p = problem(0.3, 100)
    flow = Soft(memory=0.0, concave=0.2, until=0.5, settle=0.6, refreshes=20).begin(p)
    group = next(g for g in p.graph.groups if g.name.startswith("conv."))
    start = p.starts[p.graph.groups.index(group)]
    values = {g.name: np.ones(len(g)) + np.arange(len(g)) for g in p.graph.groups}
    values[group.name][5] = -10.0
    lowest = 1.0
    while not flow.done:
        if flow.taken == 20:
            values[group.name][5] = 100.0
        if flow.due:
            flow.refresh(values)
        lowest = min(lowest, flow.step()[start + 5])
    assert lowest < 0.5
    assert flow.mask[start + 5] == 1.0
    assert 5 not in flow.plan.removed.get(group.name, ())


def test_bound_channels_share_their_rank() -> None:
    """A group norm of four groups loses one channel of each at a time, or a group whole."""
    p = problem()
    ranks = p.quantiles(random_values(p, 3), p.shares(np.ones(len(p.components))))
    stem = next(i for i, g in enumerate(p.graph.groups) if g.name.startswith("stem."))
    own = ranks[p.starts[stem] : p.starts[stem + 1]].reshape(4, 4)
    assert (own <= 1).sum() >= 8
    for rank in np.unique(own[own <= 1]):
        rows = (own == rank).sum(1)
        alive = (own >= rank).any(1)
        assert (rows[alive] == 1).all() or (rows > 0).sum() == 1


def test_shares_are_the_slope_of_the_cost() -> None:
    p = problem()
    mask = np.random.default_rng(0).uniform(0.3, 1, len(p.components))
    shares, eps = p.shares(mask), 1e-4
    for i in (0, 20, 30):
        less = mask.copy()
        less[i] -= eps
        assert (p.remaining(mask) - p.remaining(less)) / eps == pytest.approx(shares[i], rel=0.05)


def test_lasso_decays_what_will_go_and_nothing_else() -> None:
    p = problem(steps=10)
    flow = GroupLasso(most=0.2, until=1.0).begin(p)
    flow.refresh(random_values(p, 0))
    flow.step()
    assert flow.decay is not None
    assert set(np.flatnonzero(flow.decay)) == set(np.flatnonzero(p.mask(flow.plan) == 0))
    assert flow.decay.max() == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Soft(until=0.9, settle=0.5), "until=0.9, settle=0.5"),
        (lambda: Soft(memory=1.0), "memory=1.0 in"),
        (lambda: Soft(shape="square"), "shape='square' is unknown; choose one of linear"),
        (lambda: Soft().begin(problem(steps=5)), "at least 20 steps, steps=5"),
        (lambda: Iterative(rounds=9).begin(problem(steps=5)), r"9 rounds do not fit into steps=5"),
        (lambda: Iterative(until=0), "until=0 in"),
        (lambda: GroupLasso(most=2), "most=2 must be"),
    ],
)
def test_bad_options(make: object, message: str) -> None:
    with pytest.raises(fxprune.PluginError, match=message):
        make()  # type: ignore[operator]


# ---- the pruner -----------------------------------------------------------------------------------------------------


def trained(
    name: str | Scheduler, steps: int = 40, criterion: str = "taylor", optimizer: type = torch.optim.AdamW
) -> tuple[Net, fxprune.Pruner, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net().train()
    opt = optimizer(model.parameters(), 1e-3)
    scheduler = SCHEDULERS.get(name, name) if isinstance(name, str) else name
    pruner = fxprune.Pruner(model, scheduler, criterion, 0.4, steps=steps, loss=loss, example_inputs=IMAGES[:2])
    run(model, pruner, opt, steps)
    return model, pruner, opt


def run(model: nn.Module, pruner: fxprune.Pruner, opt: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        k = len(pruner.history) % 8
        batch = IMAGES[8 * k : 8 * k + 8]
        value = loss(model, batch)
        value.backward()
        opt.step()
        opt.zero_grad()
        pruner.step(batch, value)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_hand_off_changes_nothing(name: str) -> None:
    model, pruner, opt = trained(name)
    masked = float(loss(model, IMAGES))
    small = pruner.finish(optimizer=opt)
    assert type(small) is Net
    assert float(loss(small, IMAGES)) == pytest.approx(masked, rel=1e-5)
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(
        0.6 * sum(p.numel() for p in model.parameters()), rel=0.05
    )
    assert fxprune.report(small).checks[0].ok
    assert len(pruner.history) == 40


def test_optimizer_goes_on_as_if_nothing_had_happened() -> None:
    """The next step of the small model is the masked model's next step, on every weight that stays."""
    model, pruner, opt = trained("soft")
    twin, twin_opt = copy.deepcopy((model, opt))
    small = pruner.finish(optimizer=opt)
    for net, o in ((twin, twin_opt), (small, opt)):
        loss(net, IMAGES).backward()
        o.step()
    graph, plan = pruner.graph, pruner.flow.plan
    carry = fxprune.Carry(twin, small, graph, plan)
    for want, (name, got) in zip(carry.tensors(twin.parameters()), small.named_parameters(), strict=True):
        assert torch.allclose(want, got, atol=1e-5), name
    assert all(opt.state[p]["exp_avg"].shape == p.shape for p in small.parameters())


def test_averages_are_cut_too() -> None:
    torch.manual_seed(0)
    model = Net()
    ema = torch.optim.swa_utils.AveragedModel(model)
    pruner = fxprune.Pruner(model, "one_shot", "magnitude", 0.4, steps=1, example_inputs=IMAGES[:2])
    pruner.step()
    small = pruner.finish(ema=ema)
    assert torch.allclose(ema.module(IMAGES), small(IMAGES), atol=1e-6)
    with pytest.raises(fxprune.InputsError, match="ema is a dict"):
        fxprune.training.average.carry_average(fxprune.Carry(model, small, pruner.graph, pruner.flow.plan), {})


@pytest.mark.parametrize("name", ["soft", "iterative", "group_lasso"])
def test_a_run_resumes_bit_for_bit(name: str) -> None:
    whole, pruner, _ = trained(name)
    torch.manual_seed(0)
    model = Net().train()
    opt = torch.optim.AdamW(model.parameters(), 1e-3)

    def fresh() -> fxprune.Pruner:
        return fxprune.Pruner(model, SCHEDULERS[name], "taylor", 0.4, steps=40, loss=loss, example_inputs=IMAGES[:2])

    first = fresh()
    run(model, first, opt, 17)
    kept = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "pruner": first.state_dict()}, kept)
    first.detach()
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    model = Net().train()
    opt = torch.optim.AdamW(model.parameters(), 1e-3)
    model.load_state_dict(state["model"])
    second = fresh()
    opt.load_state_dict(state["opt"])
    second.load_state_dict(state["pruner"])
    run(model, second, opt, 23)
    assert np.array_equal(second.flow.mask, pruner.flow.mask)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_bad_use_is_told_at_once() -> None:
    model = Net()
    with pytest.raises(fxprune.InputsError, match="the criterion needs a loss"):
        fxprune.Pruner(model, "soft", "taylor", 0.4, steps=40, example_inputs=IMAGES[:2])
    with pytest.raises(fxprune.BudgetError, match="cannot be removed"):
        fxprune.Pruner(model, "soft", "magnitude", 0.4, steps=40, example_inputs=IMAGES[:2], ignore=["*"])
    with pytest.raises(fxprune.InputsError, match="knows no 'rounds'"):
        fxprune.Pruner(model, "soft", "magnitude", 0.4, steps=40, example_inputs=IMAGES[:2], rounds=3)
    with pytest.raises(fxprune.PluginError, match="scheduler is a int"):
        fxprune.Pruner(model, 3, "magnitude", 0.4, steps=40, example_inputs=IMAGES[:2])  # type: ignore[arg-type]
    pruner = fxprune.Pruner(model, "soft", "magnitude", 0.4, steps=40, example_inputs=IMAGES[:2])
    with pytest.raises(fxprune.PluginError, match="40 of 40 steps are left"):
        pruner.finish()
    pruner.detach()
    assert not any("_fxprune" in vars(m) for m in model.modules())
