"""Sharded parameters (FSDP2) have the scores, and the plan, of one process on the same global batch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import sharded_runs
import torch
from sharded_runs import DATA, SCORED, WHOLE, scored
from torch import nn

import fxprune
from fxprune.errors import InputsError

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of several processes found."""
    folder = tmp_path_factory.mktemp("sharded")
    child = subprocess.run(
        [*LAUNCH, f"--nproc-per-node={request.param}", sharded_runs.__file__, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(request.param)]


def test_scores_and_plans_are_those_of_one_process(told: list[dict[str, Any]]) -> None:
    assert all(one == told[0] for one in told)
    for criterion in (*SCORED, *WHOLE):
        scores, plan = scored(sharded_runs.net(), criterion, list(DATA))
        assert json.loads(told[0][criterion]["plan"]) == json.loads(plan), criterion
        for name, values in scores.values.items():
            assert told[0][criterion]["scores"][name] == pytest.approx(values.tolist(), rel=1e-4), criterion
        assert any("put together" in note for note in told[0][criterion]["notes"]) == (criterion in WHOLE)
    assert told[0]["again"] == told[0]["magnitude"]["plan"]
    assert told[0]["kept"]


REFUSALS = {
    "trace": r"sharded \(FSDP\).*pass fxprune.whole\(model\)",
    "inplace": r"inplace=True cannot cut: leave it out, and fxprune.shard_like",
    "trained inplace": r"inplace=True cannot cut: leave it out, and fxprune.shard_like",
    "trained in fp16": r'nobody scales their gradients for fp16: use mixed_precision="bf16"',
    "latency": r"would measure a latency of its own: call fxprune.prune\(fxprune.whole\(model\), ...\) on one process",
    "linear": r"replace='linear' fits layers to one process's data: call fxprune.prune\(fxprune.whole",
    "claims": r"says that it takes sharded parameters.*leave its attribute `sharded` out",
    "plain": r"this Net is not sharded: pass the one that fully_shard\(\) was called on",
    "tensor parallel": r"split over devices \(tensor parallel\): prune the whole model",
    "tensor parallel in shards": r"split over devices \(tensor parallel\): prune the whole model",
    "fsdp1": r"wrapped in FullyShardedDataParallel \(FSDP1\): shard the model with fully_shard",
    "twice": r"this FSDPNet are sharded|are sharded \(FSDP\)",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_fsdp_hides_is_refused_by_name(told: list[dict[str, Any]], name: str) -> None:
    assert re.search(REFUSALS[name], told[0]["refused"][name]), told[0]["refused"][name]


def test_other_ways_to_share_out_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    graph = fxprune.trace(net, torch.ones(1, 4))
    net[0].weight.ds_id = 3
    for call in (lambda: fxprune.trace(net, torch.ones(1, 4)), lambda: fxprune.score(graph, net, "magnitude")):
        with pytest.raises(InputsError, match=r"DeepSpeed \(ZeRO-3\).*before deepspeed.initialize"):
            call()
