"""Streamed parts of a batch, of any sizes, count as the whole does: a short last one, put together by the user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCORED = """
import json, sys, warnings
import torch
from torch import nn, distributed
from torch.utils.data import DataLoader
warnings.simplefilter("ignore")
rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    distributed.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=world)
import fxprune
from fxprune.scoring.distributed import parts, place_of

def loss(model, batch):
    # noise by the sample's place in the whole, as the losses of diffusion models draw it
    first, whole = place_of(len(batch))
    noise = torch.randn(whole, 3, generator=torch.Generator().manual_seed(whole))[first : first + len(batch)]
    return (model(batch + noise) - 1).square().mean()

rows = torch.randn(17, 3, generator=torch.Generator().manual_seed(0))
ends = {1: [6], 2: [4, 6], 3: [1, 4, 6]}[world]
mine = [whole[([0] + ends)[rank] : ends[rank]] for whole in (rows[:6], rows[6:12], rows[12:])]
stops = torch.tensor([0, *map(len, mine)]).cumsum(0).tolist()
picked = [list(range(a, b)) for a, b in zip(stops, stops[1:])]
data = DataLoader(torch.cat(mine), batch_sampler=picked, collate_fn=torch.stack)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
graph = fxprune.trace(net, torch.ones(1, 3))
told = {}
with parts():
    for criterion in ("taylor", "gradflow", "fisher", "wanda"):
        found = fxprune.score(graph, net, criterion, data=data, loss=loss)
        told[criterion] = {k: v.tolist() for k, v in found.values.items()}
print(json.dumps(told))
"""


def scored(processes: int, folder: Path) -> list[Any]:
    """What every process finds."""
    meeting = str(folder / f"meeting-{processes}")
    commands = [[sys.executable, "-c", SCORED, str(rank), str(processes), meeting] for rank in range(processes)]
    runs = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    return [json.loads(run.communicate()[0].splitlines()[-1]) for run in runs]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_streamed_parts_have_the_scores_of_the_whole(
    processes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = scored(processes, tmp_path)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", "0", "1", ""])
        exec(SCORED, {})
    torch.set_rng_state(state)
    torch.set_num_threads(threads)
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    for criterion, groups in alone.items():
        for name, values in groups.items():
            assert all(one[criterion][name] == pytest.approx(values, rel=1e-4) for one in told), criterion
