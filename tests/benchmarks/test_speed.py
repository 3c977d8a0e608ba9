"""`benchmarks/speed.py`: what it times, on a small network, and that nothing is timed while others prepare."""

from __future__ import annotations

import argparse
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import speed as module

    monkeypatch.setitem(module.NETS, "small", small)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    sys.modules.pop("speed")


def branch(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))


class Residual(nn.Module):
    """Narrow branches on a large image, then wide ones on a small one: as many MACs, and 16 times the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 32, 4, stride=4)])
        self.branches = nn.ModuleList(branch(width) for width in (8,) * 4 + (32,) * 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stems[0](x)
        for i, branch in enumerate(self.branches):
            x = x + branch(x)
            x = self.stems[1](x) if i == 3 else x
        return x


def small(batch: int) -> tuple[nn.Module, Any]:
    return Residual(), ((torch.randn(batch, 3, 8, 8),), {})


def asked(**how: Any) -> argparse.Namespace:
    usual: dict[str, Any] = {"batch": 2, "device": "cpu", "dtype": "fp32", "channels_last": True, "compile": False}
    usual |= {"threads": 1, "rounds": 1, "ratios": "0.5", "round_to": "1,auto", "depth": True, "no_table": True}
    usual |= {"no_peer": True, "energy": False, "minutes": 5.0}
    return argparse.Namespace(**usual | how)


def test_every_row_has_the_macs_that_were_asked_for(speed: ModuleType, tmp_path: Path) -> None:
    (lock := tmp_path / "lock").touch()
    found = speed.measure("small", asked(lock=str(lock)))
    rows = {r["row"]: r for r in found["rows"]}
    assert list(rows) == ["dense", *(f'fxprune of="macs"{how}' for how in (", blocks", "", ', round_to="auto"'))]
    assert rows["dense"]["macs_removed"] == 0
    assert rows["dense"]["speed_up"] == rows["dense"]["share"] == 1
    assert all(abs(r["macs_removed"] - 0.5) < 0.1 for name, r in rows.items() if name != "dense")


def test_what_is_not_compiled_in_time_is_left_out(speed: ModuleType) -> None:
    it = speed.prepared("small", asked(minutes=0.0))
    assert not it.calls
    assert set(it.macs) > set(it.calls)


def test_nothing_is_timed_while_others_prepare(speed: ModuleType, tmp_path: Path) -> None:
    (lock := tmp_path / "lock").touch()
    with lock.open() as other:
        with (
            speed.held(str(lock), fcntl.LOCK_SH),
            speed.held(str(lock), fcntl.LOCK_SH),
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
