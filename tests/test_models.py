"""The networks that the project is made for, at their real shapes: both proofs, the budget, and what users do next."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from real_models import MODELS, ddpm_cifar10, digits

import fxprune


@pytest.mark.parametrize("name", sorted(MODELS))
def test_both_proofs_and_the_budget(name: str) -> None:
    model = MODELS[name]()
    graph = fxprune.trace(model)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.4)
    done = fxprune.rewrite(model, graph, plan)
    for check in fxprune.verify(model, done.model, graph, plan):
        assert check.ok, check
        exact = check.note.startswith("in float64")  # as the rounding of a processor asks for
        assert check.tolerance == (1e-8 if exact else 1e-4)
    now, before = (sum(p.numel() for p in m.parameters()) for m in (done.model, model))
    assert abs(1 - now / before - 0.4) <= 0.01
    assert type(done.model) is type(model)


def test_ddpm_cifar10_goes_on_living(tmp_path: Path) -> None:
    """Batches 1 and 8, a training step, a copy, and save -> load in a new process bit for bit."""
    model = ddpm_cifar10()
    before = copy.deepcopy(model.state_dict())
    small = fxprune.prune(model, "magnitude", ratio=0.4, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x, t = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor(10)
    with torch.no_grad():
        full, one = small(x, t).sample, small(x[:1], t).sample
    torch.testing.assert_close(full[:1], one, rtol=1e-4, atol=1e-4)
    fxprune.save(small, tmp_path / "small")
    torch.save((x[:1], one), tmp_path / "io.pt")
    code = (
        "import sys, torch, fxprune\n"
        "m = fxprune.load(sys.argv[1]); x, y = torch.load(sys.argv[2])\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "with torch.no_grad(): assert torch.equal(m(x, torch.tensor(10)).sample, y)\n"
        "print(type(m).__module__, type(m).__name__)"
    )
    args = [str(tmp_path / "small"), str(tmp_path / "io.pt"), str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "UNet2DModel"
    optimizer = torch.optim.Adam(small.parameters(), 1e-4)
    small.train()
    loss = (small(x[:2], t).sample - x[:2]).pow(2).mean()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(copy.deepcopy(small).eval()(x[:1], t).sample).all()


def test_gradflow_needs_nothing_on_a_diffusion_model() -> None:
    """The model samples its own calibration data; the same seed gives the same plan."""
    model = digits()
    plans = [fxprune.report(fxprune.prune(model, ratio=0.4, samples=4, progress=False)).plan for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].criterion == "gradflow"
    assert abs(plans[0].achieved - 0.4) <= 0.01


def test_inplace_keeps_references() -> None:
    model = MODELS["resnet18"]()
    layer, before = model.layer1[0].conv1, sum(p.numel() for p in model.parameters())
    small = fxprune.prune(model, "magnitude", 0.5, inplace=True, progress=False)
    assert small is model
    assert model.layer1[0].conv1 is layer
    assert layer.weight.shape[0] == layer.out_channels < 64
    assert abs(sum(p.numel() for p in model.parameters()) / before - 0.5) < 0.01


def test_pruned_twice_saves_and_loads(tmp_path: Path) -> None:
    """Attribute changes are told from the stock class on, so a second pruning is not lost on the way."""
    model = digits()
    small = fxprune.prune(fxprune.prune(model, "magnitude", 0.3, progress=False), "magnitude", 0.3, progress=False)
    now, before = (sum(p.numel() for p in m.parameters()) for m in (small, model))
    assert abs(now / before - 0.49) <= 0.01
    fxprune.save(small, tmp_path / "twice")
    again = fxprune.load(tmp_path / "twice")
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(7)
    with torch.no_grad():
        assert torch.equal(again(x, t).sample, small.eval()(x, t).sample)
