"""One results file, several processes: pieces of work are shared out, and what a killed one held is taken over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.studies.shared import shared

FORK = multiprocessing.get_context("fork")
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
SEEDS = 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)).eval()


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Notes each call in a file; may end the process for good at one, or wait until another process is as far."""
    log = Path(os.environ["NOTED"])
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(log.read_text().split()) == int(os.environ.get("DIES_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    while "MEET" in os.environ and not met(log.read_text().split()):
        time.sleep(0.01)
    return model(x).square().mean()  # type: ignore[no-any-return]


def met(who: list[str]) -> bool:
    """Whether two processes have come to their first piece, after the dense model."""
    return sum(who.count(pid) > 1 for pid in set(who)) > 1 or who.count(str(os.getpid())) != 2


def compared(out: Path) -> fxprune.Comparison:
    given: dict[str, Any] = {"example_inputs": X, "held_out": [X], "loss": loss, "progress": False}
    return fxprune.compare(net(), ["magnitude", "random"], [0.3, 0.5], seeds=SEEDS, out=out, **given)


def measured(out: Path) -> fxprune.Sensitivity:
    given: dict[str, Any] = {"example_inputs": X, "data": [X], "loss": loss, "progress": False}
    return fxprune.sensitivity(net(), "magnitude", shares=[0.25, 0.5], out=out, **given)


STUDIES = {"compare": (compared, 2 * SEEDS * 2), "sensitivity": (measured, 4)}  # and how often they measure


def told(made: Any) -> Any:
    """What does not hang on the clock or the memory."""
    if isinstance(made, fxprune.Sensitivity):
        return made
    return [(r.key, r.loss, r.dense, r.params, r.error) for r in made.rows]


def process(study: str, out: Path, noted: Path, **more: str) -> Any:
    def run() -> None:
        os.environ.update(NOTED=str(noted), **more)
        made = STUDIES[study][0](out)
        out.with_suffix(f".{os.getpid()}").write_text(repr(told(made)))

    started = FORK.Process(target=run)
    started.start()
    return started


@pytest.mark.parametrize("study", STUDIES)
def test_two_processes_share_the_work(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTED", str(tmp_path / "one"))
    make, number = STUDIES[study]
    plain = make(tmp_path / "alone")
    out, noted = tmp_path / "out", tmp_path / "noted"
    both = [process(study, out, noted, MEET="") for _ in range(2)]
    for one in both:
        one.join()
    assert [p.exitcode for p in both] == [0, 0]
    who = noted.read_text().split()
    assert len(who) == number + 2, "every candidate once, and the dense model by each"
    assert all(who.count(str(p.pid)) > 1 for p in both)
    assert {out.with_suffix(f".{p.pid}").read_text() for p in both} == {repr(told(plain))}


@pytest.mark.parametrize("study", STUDIES)
def test_what_a_killed_process_held_is_taken_over(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, noted = tmp_path / "out", tmp_path / "noted"
    killed = process(study, out, noted, DIES_AT="4")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    monkeypatch.setenv("NOTED", str(noted))
    make, number = STUDIES[study]
    made = make(out)
    calls = len(noted.read_text().split())
    # Of the first four, one was of the dense model, two of what is kept, and one of what was cut off.
    assert calls == 4 + 1 + (number - 2)
    assert told(make(out)) == told(made)
    assert len(noted.read_text().split()) == calls, "nothing is measured twice"
    monkeypatch.setenv("NOTED", str(tmp_path / "one"))
    assert told(make(tmp_path / "alone")) == told(made)


def test_pieces_of_nobody_are_all_this_process_s() -> None:
    found: list[int] = []
    for piece in shared(None, {"a": 1, "b": 2, "c": 3}, lambda p: p == 2):
        found.append(piece)
    assert found == [1, 3]
