"""A checkpoint goes on on another number of processes, in shards or not, as if as many had been there all along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import regrouped_runs
import torch
from regrouped_runs import AFTER, STEPS
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.data import DataLoader

from fxprune.errors import InputsError, SaveError
from fxprune.scoring import distributed as ranks
from fxprune.scoring.identity import of_samples
from fxprune.scoring.sharded import require_even
from fxprune.training import sharded
from fxprune.training.regrouping import regrouped
from fxprune.training.stream import Stream

NEAR = {"rel": 1e-3, "abs": 1e-4}  # AdamW makes of a gradient's last bits a step's
# kind, processes and last step of who writes; kind and processes of those who go on
QUICK = ("shards", 2, 15, [("plain", 1)])
OTHERS = [
    ("shards", 2, 15, [("shards", 4)]),
    ("plain", 4, 15, [("plain", 2)]),
    ("shards", 4, 24, [("shards", 2)]),  # after the cut
    ("plain", 1, 24, [("shards", 2), ("plain", 2)]),
]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return regrouped_runs.run(None, "plain")


def started(*runs: tuple[Path, str, int, int]) -> None:
    more = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment = {**os.environ, **more, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, regrouped_runs.__file__, *(str(x) for run in runs for x in run)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-4000:]


@pytest.mark.parametrize("case", [QUICK, *(pytest.param(c, marks=pytest.mark.slow) for c in OTHERS)], ids=str)
def test_others_go_on(case: tuple[str, int, int, list[tuple[str, int]]], tmp_path: Path, alone: dict[str, Any]) -> None:
    kind, processes, stop, going_on = case
    started((tmp_path / "first", kind, processes, stop))
    for other, number in going_on:
        shutil.copytree(tmp_path / "first" / "kept", tmp_path / f"{other}{number}" / "kept")
    started(*((tmp_path / f"{other}{number}", other, number, 0) for other, number in going_on))
    for other, number in going_on:
        for rank in range(number):
            told = json.loads((tmp_path / f"{other}{number}" / f"told-{other}-{number}-0-{rank}.json").read_text())
            assert "error" not in told, told
            assert json.loads(told["plan"])["removed"] == json.loads(alone["plan"])["removed"]
            assert len(told["losses"]) == STEPS + AFTER
            assert told["losses"] == pytest.approx(alone["losses"], **NEAR)
            assert told["weights"] == pytest.approx(alone["weights"], **NEAR)
            assert not told["warned"]  # the batches were made as large as they need to be


# ---- what is each process's own -------------------------------------------------------------------------------------


def states(*batches: Any) -> list[dict[str, Any]]:
    """Of as many processes, each with one batch kept for scoring."""
    return [
        {"pruner": {"batches": [b]}, "stream": {"taken": 3, "step": 8}, "rng": r, "buffers": r}
        for r, b in enumerate(batches)
    ]


def test_parts_of_a_batch_are_put_together_and_taken_apart() -> None:
    """Samples, texts, and what is one for the whole batch; the order is that of the processes."""
    wide, narrow = (
        {"x": torch.arange(n) + a, "text": [str(a + i) for i in range(n)], "k": 3} for a, n in ((0, 4), (4, 2))
    )
    held = states(wide, narrow)
    found = [regrouped(held, rank, 3, Path("step")) for rank in range(3)]
    parts = [own["pruner"]["batches"][0] for own in found]
    assert [p["x"].tolist() for p in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [p["text"] for p in parts] == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert [p["k"] for p in parts] == [3, 3, 3]
    assert [own["buffers"] for own in found] == [0, 1, 0]
    assert [own["rng"] if rank < 2 else None for rank, own in enumerate(found)] == [0, 1, None]
    assert regrouped(held, 0, 1, Path("step"))["pruner"]["batches"][0]["x"].tolist() == list(range(6))


def test_a_new_process_draws_numbers_of_its_own() -> None:
    before = torch.get_rng_state()
    third, fourth = (regrouped(states(torch.ones(4), torch.ones(4)), rank, 4, Path("step"))["rng"] for rank in (2, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(third["torch"], fourth["torch"])
    assert third["numpy"][1].tolist() != fourth["numpy"][1].tolist()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.ones(1, 2), torch.ones(1, 2)], r"are 2 samples: they cannot be split over 4; go on with 2 processes"),
        ([torch.ones(4, 2), torch.ones(4, 3)], r"hold no samples that could be put together.*go on with 2 processes"),
        ([{"x": torch.ones(4), "k": 1}, {"x": torch.ones(4), "k": 2}], "hold no samples that could be put together"),
        ([np.ones(4), np.ones(4)], "hold no samples that could be put together"),
    ],
    ids=str,
)
def test_batches_that_cannot_be_regrouped_are_refused(batches: list[Any], message: str) -> None:
    with pytest.raises(SaveError, match=message):
        regrouped(states(*batches), 0, 4, Path("step"))


def stream(processes: int, size: int, samples: int = 24) -> Stream:
    accelerator = SimpleNamespace(num_processes=processes, process_index=0, device=torch.device("cpu"))
    made = Stream([], SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu")))  # type: ignore[arg-type]
    made.data = made.loader = DataLoader(torch.arange(samples), size)  # type: ignore[arg-type]
    made.step = size * accelerator.num_processes
    return made


@pytest.mark.parametrize(
    ("now", "size", "first"), [(4, 2, 6), (1, 8, 24 - 8), (1, 4, 16), (1, 16, 16), (1, 5, 15)], ids=str
)
def test_the_place_in_the_data_is_that_of_the_samples(now: int, size: int, first: int) -> None:
    """Two batches of two processes of 4 samples each have taken 16; on what is read next `first` is the first."""
    held = {"epoch": 0, "taken": 2, "start": {}, "step": 8}
    made = stream(now, size)
    warned = pytest.warns(UserWarning, match="was 8 samples .* and now is") if made.step != 8 else None
    if warned is None:
        made.load_state_dict(held)
    else:
        with warned:
            made.load_state_dict(held)
    assert made.taken * made.step <= 16 < (made.taken + 1) * made.step
    if now == 1:
        made._start = {"rng": regrouped(states(torch.ones(4)), 1, 2, Path())["rng"], "own": []}
        assert int(next(made)[0]) == first


def test_an_epoch_whose_last_batches_were_taken_twice_is_over() -> None:
    """Three batches for two processes: one was taken again so that both had two; one process has taken them all."""
    made = stream(1, 4, samples=12)
    with pytest.warns(UserWarning, match="was 8 samples"):
        made.load_state_dict({"epoch": 0, "taken": 2, "start": {}, "step": 8})
    made._start = {"rng": regrouped(states(torch.ones(4)), 1, 2, Path())["rng"], "own": []}
    assert (int(next(made)[0]), made.epoch) == (0, 1)


def test_samples_are_the_same_however_they_are_batched() -> None:
    rows = torch.arange(24.0)
    one, other = (of_samples(DataLoader(rows, size)) for size in (8, 4))  # type: ignore[arg-type]
    assert one == other != ""
    assert of_samples(DataLoader(rows + 1, 8)) != one  # type: ignore[arg-type]
    assert of_samples(DataLoader(rows, 8, shuffle=True)) != one  # type: ignore[arg-type]
    assert of_samples([rows]) == ""


# ---- processes that do not do alike ---------------------------------------------------------------------------------


def test_data_too_small_for_the_processes_say_so() -> None:
    accelerator = SimpleNamespace(num_processes=4, process_index=2, device=torch.device("cpu"))
    with pytest.raises(InputsError, match=r"no batch for process 2 of 4, .* pass smaller ones .* or start fewer"):
        next(Stream((x for x in [torch.ones(1)]), accelerator))  # type: ignore[arg-type]
    short = stream(1, 4, samples=3)
    short.data = short.loader = DataLoader(torch.ones(3), 4, drop_last=True)  # type: ignore[arg-type]
    with pytest.raises(InputsError, match=r"data has no batch; .*leave drop_last=True out"):
        next(short)


def test_shards_need_as_many_batches_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "several", lambda: True)
    monkeypatch.setattr(ranks, "gathered", lambda mine: [list(mine), [2]])
    require_even("taylor", 2)
    with pytest.raises(InputsError, match=r"the processes have 3, 2 batches, .* pass as many in each .*fxprune\.whole"):
        require_even("taylor", 3)


def test_shards_that_a_disk_refuses_are_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch's own is no `Exception`: it would pass by all that catches these."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def refuses(*args: Any, **keywords: Any) -> None:
        raise CheckpointException("save", {1: (OSError(28, "No space left on device"), None)})  # type: ignore[dict-item]

    monkeypatch.setattr(sharded, "save", refuses)
    with pytest.raises(SaveError, match=r"cannot be written by process 1: OSError: .*No space left.* a disk that they"):
        sharded.write_shards(tmp_path, net, optimizer, None)
    with pytest.raises(SaveError, match=r"cannot be read by process 0: "):
        sharded.read_shards(tmp_path, net, optimizer, None)
