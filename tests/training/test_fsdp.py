"""A model that FSDP2 has shared out is pruned as by one process on the same global batch, at once or in training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsdp_runs
import pytest
from fsdp_runs import CUTS, RUNS, SAVED, STEPPED

NEAR = {"rel": 1e-3, "abs": 1e-4}  # AdamW makes of a gradient's last bits a step's


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return fsdp_runs.results()


def started(which: str, folder: Path, processes: int) -> list[int]:
    """Exit codes of all processes."""
    more = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    more |= {"PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    command = [sys.executable, fsdp_runs.__file__, which, str(folder)]
    runs = [
        subprocess.Popen(
            [*command, str(r), str(processes)], env={**os.environ, **more, "RANK": str(r), "LOCAL_RANK": str(r)}
        )
        for r in range(processes)
    ]
    return [run.wait() for run in runs]


def read(which: str, folder: Path, processes: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{which}-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Where several processes wrote what they found, before all of them were killed in a further run."""
    made: Path = tmp_path_factory.mktemp("fsdp")
    assert started("first", made, request.param) == [-signal.SIGKILL] * request.param
    return made, request.param


@pytest.fixture(scope="module")
def told(folder: tuple[Path, int]) -> list[dict[str, Any]]:
    return read("first", *folder)


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


@pytest.mark.parametrize("scheduler", STEPPED)
def test_a_whole_run_trains_shards(told: list[dict[str, Any]], alone: dict[str, Any], scheduler: str) -> None:
    here, there = alone["steps"][scheduler], told[0]["steps"][scheduler]
    assert all(one["steps"][scheduler] == there for one in told)
    assert removed(there["plan"]) == removed(here["plan"])
    assert not there["sharded"]
    for what in ("losses", "weights"):
        assert there[what] == pytest.approx(here[what], **NEAR), what


def test_accelerates_plugin_trains_shards(told: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    here, there = alone["accelerate"], told[0]["accelerate"]
    assert removed(there["plan"]) == removed(here["plan"])
    assert there["sharded"]
    assert there["saved"] == here["saved"]
    for what in ("losses", "weights"):
        assert there[what] == pytest.approx(here[what], **NEAR), what


def test_what_was_saved_goes_on_after_a_kill(folder: tuple[Path, int], told: list[dict[str, Any]]) -> None:
    """A loop of one's own and a run, bit for bit; each process has its own batches, draws and running statistics."""
    assert started("second", *folder) == [0] * folder[1]
    for first, second in zip(told, read("second", *folder), strict=True):
        want, loop = first["soft"], second["loop"]
        assert {**loop, "losses": want["losses"][:SAVED] + loop["losses"]} == want
        want, loop = first["accelerate"], second["accelerate"]
        assert {**loop, "losses": want["losses"][:SAVED] + loop["losses"]} == want
        assert second["run"].pop("taken") == 24 - 12
        assert first["uninterrupted"].pop("taken") == 24
        assert second["run"] == first["uninterrupted"]
    assert told[0]["uninterrupted"]["running"] != told[1]["uninterrupted"]["running"]
