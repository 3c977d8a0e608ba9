"""A save that is killed, at any call that it makes to the system, leaves the old network or the new one, whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import SaveError
from fxprune.saving import exchange as exchanging
from fxprune.saving import folder as folders
from fxprune.saving.exchange import exchange

# A child saves and is killed at its n-th call to the system; the parent then loads.  All of it in one process, because
# importing torch takes longer than all the saves.
KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
import safetensors.torch, torch, fxprune
from torch import nn
from fxprune.saving import folder as folders

root, way = Path(sys.argv[1]), sys.argv[2]
if way == "renames":
    folders.exchange = lambda *_: False
DIR = root / "m"

def net(value):
    made = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        made[0].weight.fill_(value)
    return made

def killed_at(n):
    left = [n]
    def moment():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def wrapped(module, name):
        real = getattr(module, name)
        def call(*args, **kwargs):
            moment()
            done = real(*args, **kwargs)
            moment()
            return done
        setattr(module, name, call)
    for module, name in ((os, "rename"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"),
                         (safetensors.torch, "save_file"), (folders, "exchange"), (shutil, "rmtree")):
        wrapped(module, name)

found, n = [], 0
fxprune.save(net(0.0), DIR)
while True:
    n += 1
    value = float(fxprune.load(DIR, net(9.0))[0].weight[0, 0])
    child = os.fork()
    if child == 0:
        killed_at(n)
        fxprune.save(net(value + 1), DIR)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    after = float(fxprune.load(DIR, net(9.0))[0].weight[0, 0])
    found.append([after - value, DIR.exists()])
    if not os.WIFSIGNALED(status):
        break
print(json.dumps(found))
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_network(tmp_path: Path, way: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    steps = [step for step, _ in found]
    assert len(steps) > 15, "there are so many moments"
    assert set(steps) == {0.0, 1.0}
    assert steps[-1] == 1.0, "the last one was not killed"
    assert steps == sorted(steps), "the old one up to some moment, then the new one"
    if way == "exchange":
        assert all(there for _, there in found), "the folder is never gone"
    else:
        assert not all(there for _, there in found), "between two renames it is, and load finds what was there"


def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot exchange folders in one step")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "gone")


def test_a_system_that_cannot_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanging, "_renameat2", lambda: None)
    assert not exchange(tmp_path, tmp_path)


def test_what_a_kill_cut_off_is_finished_by_the_next_save(tmp_path: Path) -> None:
    folder, old = tmp_path / "m", tmp_path / ".m.0123abcd.old"
    fxprune.save(nn.Linear(2, 2), folder)
    os.rename(folder, old)
    assert isinstance(fxprune.load(folder, nn.Linear(2, 2)), nn.Linear)
    assert not folder.exists(), "loading writes nothing"
    fxprune.save(nn.Linear(3, 3), folder)
    assert isinstance(fxprune.load(folder, nn.Linear(3, 3)), nn.Linear)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_all_is_flushed_before_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real, swap = os.fsync, folders._swap
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    monkeypatch.setattr(folders, "_swap", lambda *args: (done.append("swap"), swap(*args))[1])
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not tell the names of open files")
    fxprune.save(nn.Linear(2, 2), tmp_path / "m")
    before, after = done[: done.index("swap")], done[done.index("swap") + 1 :]
    assert {Path(p).name for p in before[:-1]} == {"model.safetensors", "fxprune.json", "README.md"}
    assert Path(before[-1]).name.endswith(".new")
    assert after == [str(tmp_path)]


def test_a_disk_that_refuses_to_flush_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fxprune.save(nn.Linear(2, 2), tmp_path / "m")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="No space left on device; what was there is as it was"):
        fxprune.save(nn.Linear(3, 3), tmp_path / "m")
    assert isinstance(fxprune.load(tmp_path / "m", nn.Linear(2, 2)), nn.Linear)


def test_a_save_by_another_process_while_one_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is of the old folder, the weights of the new one: it is read again."""
    from fxprune.saving import weights

    fxprune.save(nn.Linear(2, 2), tmp_path / "m")
    read, saved = weights.read, []

    def meanwhile(*args: Any) -> Any:
        if not saved:
            saved.append(1)
            other = nn.Linear(2, 2)
            nn.init.ones_(other.weight)
            thread = threading.Thread(target=fxprune.save, args=(other, tmp_path / "m"))
            thread.start()
            thread.join()
        return read(*args)

    monkeypatch.setattr(weights, "read", meanwhile)
    assert torch.equal(fxprune.load(tmp_path / "m", nn.Linear(2, 2)).weight, torch.ones(2, 2))
