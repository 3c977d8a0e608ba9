"""A process that is killed ends the others with a sentence of ours, wherever it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import killed_runs
import pytest
from killed_runs import EVERY, RUNS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes that were left wrote what they met."""
    made: Path = tmp_path_factory.mktemp("killed")
    more = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment = {**os.environ, **more, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, killed_runs.__file__, made], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return made


@pytest.mark.parametrize("name", RUNS)
def test_the_other_process_says_what_happened(folder: Path, name: str) -> None:
    assert json.loads((folder / name / "codes.json").read_text()) == [0, -signal.SIGKILL]
    told = json.loads((folder / name / "told-0.json").read_text())
    assert told["ours"], told
    assert "process 0 of 2 has lost another one, which has failed or been killed" in told["text"]
    assert "start them all again" in told["text"]


@pytest.mark.parametrize("name", ["a checkpoint", "a checkpoint of shards"])
def test_a_checkpoint_that_was_being_written_is_not_there(folder: Path, name: str) -> None:
    kept = [p.name for p in (folder / name / "kept").glob("step-*")]
    assert kept == [f"step-{EVERY:08d}"]
