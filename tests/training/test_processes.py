"""However many processes, one result; and what is said where one of them is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.demo import digits
from fxprune.errors import InputsError
from fxprune.scoring import distributed as ranks
from fxprune.scoring.timesteps import own_strata
from fxprune.training.stream import Stream

START = """
import json, sys, warnings
import torch
from torch import nn, distributed
warnings.simplefilter("ignore")
rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    distributed.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=world)
import fxprune
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    def forward(self, x):
        return self.layers(x)

def loss(model, batch):
    return (model(batch) - 1).square().mean()
"""

TOGETHER = """
from fxprune.demo import digits
told = []
images = digits.load_digits_split().train_images[:10]
for timesteps in ("uniform", "threshold"):
    pruner = fxprune.Pruner(digits.load_pipeline().unet, "one_shot", "taylor", 0.4, steps=1, timesteps=timesteps)
    pruner.step(images if world == 1 else images[:6] if rank == 0 else images[6:])
    told.append(json.loads(pruner.flow.plan.to_json())["removed"])
net = Net()
pruner = fxprune.Pruner(net, "soft", "gradflow", 0.4, steps=20, loss=loss, example_inputs=torch.ones(1, 3))
trains = nn.parallel.DistributedDataParallel(net) if world > 1 else net
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for batch in torch.randn(20, 6, 3):
    own = batch if world == 1 else batch[:4] if rank == 0 else batch[4:]
    # Two unequal parts: DDP takes the mean over processes, so that each counts as it should.
    (loss(trains, own) * len(own) * world / len(batch)).backward()
    optimizer.step(); optimizer.zero_grad()
    pruner.step(own)
small = pruner.finish(optimizer)
told.append({g: [int(i) for i in v] for g, v in fxprune.report(small).plan.removed.items()})
told.append([float(p.detach().double().sum()) for p in small.parameters()])
print(json.dumps(told))
"""

GONE = """
if rank == 1:
    sys.exit(3)
graph = fxprune.trace(net := Net(), torch.ones(1, 3))
try:
    fxprune.score(graph, net, "taylor", data=[torch.randn(4, 3)], loss=loss)
except fxprune.FxPruneError as e:
    print(json.dumps(str(e)))
"""


def together(script: str, world: int, tmp_path: Path, *more: str) -> list[Any]:
    """What every process of a run prints last."""
    meeting = str(tmp_path / f"meeting-{world}")
    commands = [[sys.executable, "-c", START + script, str(r), str(world), meeting, *more] for r in range(world)]
    runs = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    told = [run.communicate()[0].splitlines() for run in runs]
    return [json.loads(lines[-1]) if lines else None for lines in told]


def test_parts_of_a_batch_give_what_the_whole_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plans of a diffusion model, whose noise hangs on the sample, and a loop of one's own under DDP."""
    first, second = together(TOGETHER, 2, tmp_path)
    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", "0", "1", ""])
        exec(START + TOGETHER, {})
    torch.set_rng_state(state)
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first == second
    assert all(any(removed.values()) for removed in alone[:3])
    assert first[:3] == alone[:3]
    assert first[3] == pytest.approx(alone[3], rel=1e-4, abs=1e-5)


def test_the_others_say_that_a_process_is_gone(tmp_path: Path) -> None:
    told = together(GONE, 2, tmp_path)
    assert told[1] is None
    assert "process 0 of 2 has lost another one, which has failed or been killed" in told[0]
    assert "checkpoint_dir=" in told[0]


def test_too_few_batches_for_so_many_processes() -> None:
    class Accelerator:
        num_processes, process_index, device = 4, 0, torch.device("cpu")

    with pytest.raises(InputsError, match=r"data holds 3 batches for 4 processes.*pass at least 4 .* fewer processes"):
        Stream([torch.ones(1)] * 3, Accelerator())  # type: ignore[arg-type]


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), ranks.told():
        raise RuntimeError("shapes differ")


def test_a_part_draws_what_the_whole_does() -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in range(7)]

    whole = own_strata(generators(), 0, 7)
    assert torch.equal((whole * 7).long(), torch.arange(7))
    assert torch.equal(own_strata(generators()[3:], 3, 7), whole[3:])


def test_another_place_or_seed_or_image_is_other_noise() -> None:
    net = digits.load_pipeline().unet
    _, loss = fxprune.calibration(net, 1, progress=False)
    image = digits.load_digits_split().train_images[:1]
    twice = image.repeat(2, 1, 1, 1)
    with torch.no_grad():
        once, other = float(loss(net, image)), float(loss(net, image * 0.9))
        both = float(loss(net, twice))
    assert len({once, other, both}) == 3
