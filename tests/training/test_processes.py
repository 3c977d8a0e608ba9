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

DIFFUSION = """
from fxprune.demo import digits
images = digits.load_digits_split().train_images[:10]
pruner = fxprune.Pruner(digits.load_pipeline().unet, "one_shot", "taylor", 0.4, steps=1, timesteps=sys.argv[4])
pruner.step(images.tensor_split(world)[rank])
print(json.dumps(json.loads(pruner.flow.plan.to_json())))
"""

DDP = """
net = Net()
pruner = fxprune.Pruner(net, "soft", "gradflow", 0.4, steps=24, loss=loss, example_inputs=torch.ones(1, 3))
trains = nn.parallel.DistributedDataParallel(net) if world > 1 else net
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for batch in torch.randn(24, 6, 3):
    own = batch[: 4] if rank == 0 else batch[4 :]
    own = batch if world == 1 else own
    # Two unequal parts: DDP takes the mean over processes, so that each counts as it should.
    (loss(trains, own) * len(own) * world / len(batch)).backward()
    optimizer.step(); optimizer.zero_grad()
    pruner.step(own)
small = pruner.finish(optimizer)
values = [float(p.double().sum()) for p in small.parameters()]
print(json.dumps([{g: list(v) for g, v in fxprune.report(small).plan.removed.items()}, values], default=int))
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


@pytest.mark.parametrize("timesteps", ["uniform", "threshold"])
def test_noise_and_times_hang_on_the_sample_however_a_batch_is_split(timesteps: str, tmp_path: Path) -> None:
    alone, three = (together(DIFFUSION, n, tmp_path, timesteps) for n in (1, 3))  # of ten samples 4, 3 and 3
    assert alone[0]["removed"]
    assert [plan["removed"] for plan in three] == [alone[0]["removed"]] * 3


def test_a_loop_of_ones_own_under_ddp(tmp_path: Path) -> None:
    alone, two = (together(DDP, n, tmp_path) for n in (1, 2))
    assert two[0] == two[1]
    assert any(alone[0][0].values())
    assert two[0][0] == alone[0][0]
    assert two[0][1] == pytest.approx(alone[0][1], rel=1e-4, abs=1e-5)


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
