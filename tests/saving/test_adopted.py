"""What a streamed prune cuts is written once: its temporary files become the shards, where the system lets them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fxprune
from fxprune import folders
from fxprune.scoring.mapped import Part, Scratch

X = torch.ones(2, 8)
GIVEN: dict[str, Any] = {"example_inputs": X, "progress": False}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    return made.append(nn.ReLU()).append(nn.Linear(1024, 2)).eval()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adopted") / "dense"
    folder.mkdir()
    save_file(net().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The names of tensors that are written a second time, by file."""
    calls: list[set[str]] = []

    def noting(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(set(tensors))
        save_file(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", noting)
    return calls


def refused(*_: Any, **__: Any) -> None:
    raise OSError(18, "Invalid cross-device link")


def check(dense: Path, target: Path, limit: str) -> list[Path]:
    made = fxprune.prune_folder(dense, target, "magnitude", 0.4, model=net, max_shard_size=limit, **GIVEN)
    plain = fxprune.prune(net(), "magnitude", 0.4, **GIVEN)
    small = fxprune.load(made, model=net)
    assert all(torch.equal(p, q) for p, q in zip(small.parameters(), plain.parameters(), strict=True))
    assert torch.equal(small(X), plain.eval()(X))
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    files = sorted(made.glob("*.safetensors"))
    assert {f.stat().st_mode & 0o777 for f in files} == {target.stat().st_mode & 0o666}
    return files


def test_temporary_files_become_shards(dense: Path, written: list[set[str]], tmp_path: Path) -> None:
    files = check(dense, tmp_path / "small", "2MB")
    if not hasattr(os, "O_TMPFILE") or sys.platform != "linux":
        pytest.skip("this system cannot give a temporary file a name")
    assert not {"2.weight", "4.weight"} & set().union(*written), "what is too small for a file of its own is, together"
    assert len(written) == 1
    names = []
    for file in files:
        with safe_open(file, framework="pt") as held:
            names += held.keys()
    assert sorted(names) == sorted(net().state_dict())
    written.clear()
    assert len(check(dense, tmp_path / "small", "1GB")) == 1
    assert not written


def test_where_the_system_refuses_they_are_written(
    dense: Path, written: list[set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refused)
    check(dense, tmp_path / "small", "2MB")
    assert set().union(*written) == set(net().state_dict())


def grown(save: Callable[..., Any]) -> Callable[..., Any]:
    """Saving, after a bias has been given other memory."""

    def saving(small: Any, *args: Any, **kwargs: Any) -> Any:
        small[2].bias = nn.Parameter(small[2].bias.detach().clone())
        return save(small, *args, **kwargs)

    return saving


def test_a_file_with_a_hole_is_written(
    dense: Path, written: list[set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "save", grown(folders.save))
    check(dense, tmp_path / "small", "1GB")
    assert written == [set(net().state_dict())]


def test_what_another_attempt_cut_is_let_go(tmp_path: Path) -> None:
    from fxprune.scoring.mapped import Pages

    with Pages() as pages:
        scratch = Scratch(tmp_path, pages, 100)
        first = scratch.moved(torch.arange(6.0))
        assert len(scratch.parts) == 1
        other = scratch.moved(torch.arange(30.0))
        assert len(scratch.parts) == 2
        scratch.begin()
        again = scratch.moved(torch.arange(3.0))
        assert [list(p.held) for p in scratch.parts] == [[again.data_ptr()]]
        assert torch.equal(first, torch.arange(6.0))
        assert torch.equal(other, torch.arange(30.0))


def test_a_header_that_has_no_room_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w+b", buffering=0) as file:
        assert not Part(file).become(tmp_path / "g", bytes(1 << 17))
    assert not (tmp_path / "g").exists()
