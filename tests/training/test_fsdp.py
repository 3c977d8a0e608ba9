"""A model that FSDP2 has shared out is pruned as by one process on the same global batch, at once or in training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import fsdp_runs
import pytest
from fsdp_runs import CUTS, RUNS

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
NEAR = {"rel": 1e-3, "abs": 1e-4}  # AdamW makes of a gradient's last bits a step's


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return fsdp_runs.results()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of several processes found."""
    folder = tmp_path_factory.mktemp("fsdp")
    child = subprocess.run(
        [*LAUNCH, f"--nproc-per-node={request.param}", fsdp_runs.__file__, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(request.param)]


def removed(plan: str) -> Any:
    return json.loads(plan)["removed"]


@pytest.mark.parametrize("criterion", CUTS)
def test_one_cut_gives_every_process_the_whole_small_model(
    told: list[dict[str, Any]], alone: dict[str, Any], criterion: str
) -> None:
    assert all(one[criterion] == told[0][criterion] for one in told)
    assert removed(told[0][criterion]["plan"]) == removed(alone[criterion]["plan"])
    assert any(removed(alone[criterion]["plan"]).values())
    assert not told[0][criterion]["sharded"]
    for row, wanted in zip(told[0][criterion]["output"], alone[criterion]["output"], strict=True):
        assert row == pytest.approx(wanted, **NEAR)


def test_a_criterion_that_sees_one_process_gives_one_plan(told: list[dict[str, Any]]) -> None:
    assert all(one["lone"]["plan"] == told[0]["lone"]["plan"] for one in told)


@pytest.mark.parametrize("scheduler", RUNS)
def test_masks_move_while_shards_train_and_what_was_trained_goes_on(
    told: list[dict[str, Any]], alone: dict[str, Any], scheduler: str
) -> None:
    here, there = alone[scheduler], told[0][scheduler]
    assert all(one[scheduler] == there for one in told)
    assert removed(there["plan"]) == removed(here["plan"])
    assert there["sharded"]
    for what in ("losses", "weights", "state", "average"):
        assert there[what] == pytest.approx(here[what], **NEAR), what
