"""A streamed prune that is killed at any stage: the result is not there, and the same call makes it all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
import fxprune
from fxprune import folders
from fxprune.masking import masked_run
from fxprune.rewriting import slicing
from fxprune.saving import checksums, weights
from fxprune.scoring import folding
from fxprune.scoring.mapped import Scratch
import fxprune.verification as verification
import fxprune.saving.folder as places

here = Path(sys.argv[1])
X = torch.ones(2, 8)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)).eval()

def pruned(target):
    given = dict(model=net, example_inputs=X, progress=False, max_shard_size=2000)
    return fxprune.prune_folder(here / "dense", target, "magnitude", 0.4, **given)

def dies(owner, name, at):
    whole, calls = getattr(owner, name), []
    def called(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)
    setattr(owner, name, called)

STAGES = {
    "scoring": (folding.Folded, "over_all_but", 2),
    "cutting": (Scratch, "written", 3),
    "proof": (verification, "run_masked", 1),
    "before saving": (folders, "save", 1),
    "first shard": (weights, "_write", 1),
    "second shard": (weights, "_write", 2),
    "checksums": (checksums, "_settled", 1),
    "flush": (places, "flush", 1),
    "swap": (places, "_swap", 1),
}
(here / "dense").mkdir()
save_file(net().state_dict(), here / "dense" / "model.safetensors")
told = {}
for stage, place in STAGES.items():
    target = here / stage.replace(" ", "-")
    child = os.fork()
    if child == 0:
        dies(*place)
        pruned(target)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    there = target.exists()
    plans = [p for p in here.iterdir() if p.name == f".{target.name}.plan.json"]
    child = os.fork()
    if child == 0:
        dies(folding.Folded, "over_all_but", 1 if plans else 1000)  # a plan that is there is not made again
        pruned(target)
        os._exit(0)
    again = os.waitpid(child, 0)[1]
    data = {p.name: p.read_bytes().hex() for p in sorted(target.glob("*.safetensors"))}
    small = fxprune.load(target, model=net)
    rest = sorted(p.name for p in here.iterdir() if p.name.endswith(".plan.json"))
    told[stage] = [killed, there, bool(plans), again, data, small[0].out_features, rest]
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL, and no fork")
def test_a_kill_at_any_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    first = next(iter(told.values()))
    assert len(first[4]) > 2
    for stage, (killed, there, planned, again, data, width, rest) in told.items():
        assert (killed, there, again) == (True, False, 0), stage
        assert planned == (stage not in ("scoring", "cutting", "proof")), stage
        assert (data, width, rest) == (first[4], first[5], []), stage
