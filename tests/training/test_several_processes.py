"""What processes decide together, with a stand-in for the other process: sums, thresholds, and how many there were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fxprune
from fxprune.criteria.diff_pruning import DiffPruning
from fxprune.graph.analysis import analyse
from fxprune.scoring.score import score
from fxprune.training.checkpoints import Checkpoints, saved_beside

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor, Any], None]], None]:
    """Runs as the first of two processes; the argument gives every collective sum the other one's share."""

    def start(other: Callable[[Tensor, Any], None]) -> None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "get_rank", lambda: 0)
        monkeypatch.setattr(dist, "all_reduce", lambda t, op=dist.ReduceOp.SUM: other(t, op))

    return start


def test_masks_follow_the_scores_of_all_processes(beside: Any) -> None:
    """Each of the two would cut its own lowest channels; together they cut those of the lowest mean."""
    mine = np.array([0.0, 0.0, 9.0, 9.0, 3.0, 3.0, 9.0, 9.0])
    theirs = np.array([9.0, 9.0, 0.0, 0.0, 3.0, 3.0, 9.0, 9.0])

    def given(ctx: Any) -> dict[str, Tensor]:
        return {g.name: torch.from_numpy(mine) for g in ctx.graph.groups}

    beside(lambda t, op: t.add_(torch.from_numpy(theirs)) if t.shape == (8,) else t.mul_(2))
    pruner = fxprune.Pruner(net(), "one_shot", given, 0.25, steps=1, example_inputs=X, scope="local")
    pruner.step()
    assert pruner.finish().get_submodule("0").out_features == 6
    assert pruner.flow.plan.removed == {"0.weight:0": (4, 5)}


def test_the_threshold_of_timesteps_is_that_of_all_processes(beside: Any) -> None:
    """Losses of 5 and 0.4 here, of 20 there: 5 % of 20 leaves the 0.4 out, which 5 % of 5 would not."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    model.load_state_dict({"0.weight": torch.tensor([[3.0], [1.0]]), "1.weight": torch.tensor([[1.0, 2.0]])})
    graph = analyse(model, ((torch.ones(1, 1),), {}))

    def other(t: Tensor, op: Any) -> None:
        if op == dist.ReduceOp.MAX:
            t.clamp_(min=20.0)
        elif t.dtype == torch.float64:  # a count: the other process has two timesteps too, one of which counts
            t.add_(2 if t > 1 else 1)

    beside(other)
    data = [torch.tensor([[1.0], [0.08]])]
    found = score(graph, model, DiffPruning(), data=data, loss=lambda m, x: m(x).mean()).values["0.weight:0"]
    # the gradient of the one that counts over four, times four over the two that count
    assert found.tolist() == pytest.approx([3.0, 2.0])


def accelerator(processes: int, index: int = 0) -> Any:
    first = index == 0
    return SimpleNamespace(
        is_main_process=first, wait_for_everyone=lambda: None, num_processes=processes, process_index=index
    )


@pytest.mark.parametrize(("then", "now"), [(1, 2), (2, 1), (2, 4)])
def test_an_old_checkpoint_of_another_number_of_processes_is_refused(then: int, now: int, tmp_path: Path) -> None:
    wrote = {"x": 1, "stream": {"taken": 2}}  # which does not tell how many samples a step took
    path = Checkpoints(tmp_path, accelerator(then)).write(3, {"run": {"seed": "0"}}, wrote)
    for rank in range(1, then):
        shutil.copy(path / "process-0.pt", path / f"process-{rank}.pt")
    held, own = Checkpoints(tmp_path, accelerator(then)).read(path, {"seed": "0"})
    assert (held["processes"], own) == (then, wrote)
    with pytest.raises(fxprune.SaveError, match=rf"written by {then} processes, and now there are {now}; .*start as"):
        Checkpoints(tmp_path, accelerator(now)).read(path, {"seed": "0"})


def test_a_checkpoint_that_the_disk_refuses_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(fxprune.SaveError, match=r"the checkpoint .*step-00000003 cannot be written: \w+Error"):
        Checkpoints(tmp_path / "file", accelerator(1)).write(3, {"run": {}}, {})


def test_weights_that_find_no_place_beside_are_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert torch.load(saved_beside({"x": torch.ones(2)}), weights_only=True)["x"].tolist() == [1, 1]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(fxprune.SaveError, match="FileNotFoundError"):
        saved_beside({"x": torch.ones(2)})


class Pickled:
    """Unpickling it touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("part", ["shared.pt", "process-0.pt"])
def test_a_checkpoint_is_read_without_pickle(part: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", accelerator(1))
    path = checkpoints.write(3, {"run": {}}, {"x": 1})
    torch.save({"run": {}, "processes": 1, "x": Pickled(tmp_path / "touched")}, path / part)
    with pytest.raises(fxprune.SaveError, match=f"{part} is damaged or missing"):
        checkpoints.read(path, {})
    assert not (tmp_path / "touched").exists()
