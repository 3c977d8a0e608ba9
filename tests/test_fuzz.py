"""A slice of each campaign of `fuzz`, and that the campaigns notice what they look for."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import arguments, folders, kills, nets, sandbox
from fuzz.trials import Outcome, read, run, table
from torch import nn

import fxprune

CHEAP = ("plain", "shards", "blocks", "unet")


@pytest.fixture
def few_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "FAMILIES", {name: folders.FAMILIES[name] for name in CHEAP})
    folders.bases.cache_clear()


def bad(outcomes: Any) -> list[Outcome]:
    found = list(outcomes)
    assert found, "something was tried"
    return [o for o in found if o.bad]


def test_networks() -> None:
    assert not bad(nets.campaign(range(10_000, 10_008), 0))


@pytest.mark.usefixtures("few_families")
def test_folders() -> None:
    assert not bad(folders.campaign(range(10_000, 10_060), 0))


def test_arguments(tmp_path: Path) -> None:
    assert not bad(arguments.campaign(range(10_000, 10_150), 0))


# In a process of their own: autograd has run in this one, so that it would run in no fork.
KILLS = """
import random, tempfile
from pathlib import Path
from fuzz import kills
for kind, times in [("save", 8), ("run", 2), ("compare", 1), ("interrupt", 1), ("full disk", 1)]:
    for number in range(times):
        with tempfile.TemporaryDirectory() as folder:
            note = kills.KINDS[kind](random.Random(number), Path(folder))
        assert note == "", (kind, number, note)
print("all tried")
"""


def test_kills() -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, "-c", KILLS], capture_output=True, text=True, check=False, env=known)
    assert done.stdout.endswith("all tried\n"), done.stderr


# ---- of the trials themselves ---------------------------------------------------------------------------------------


def test_a_campaign_goes_on_where_it_stopped(tmp_path: Path) -> None:
    tried: list[int] = []

    def campaign(numbers: Any, seed: int) -> Any:
        for n in numbers:
            tried.append(n)
            yield Outcome(n, "kind", "ok")

    out = tmp_path / "o.jsonl"
    list(run(campaign, range(3), 0, out))
    with out.open("a") as file:
        file.write('{"number": 3, "ki')  # a kill
    assert [o.number for o in read(out)] == [0, 1, 2]
    list(run(campaign, range(5), 0, out))
    assert tried == [0, 1, 2, 3, 4]
    assert sorted(o.number for o in read(out)) == [0, 1, 2, 3, 4]


def test_the_table_counts() -> None:
    text = table([Outcome(0, "a", "ok"), Outcome(1, "a", "raw"), Outcome(2, "b", "refused")])
    assert [line.split() for line in text.splitlines()] == [
        ["trials", "ok", "refused", "raw"], ["a", "2", "1", "0", "1"], ["b", "1", "0", "1", "0"],
        ["all", "3", "1", "1", "1"],
    ]  # fmt: skip


def scaled(small: nn.Module) -> None:
    small.head.weight.data[0] *= 1.1


def swapped(small: nn.Module) -> None:
    weight = small.image[0].conv.weight.data
    weight[[0, 1]] = weight[[1, 0]].clone()


def hooked(small: nn.Module) -> None:
    small.register_forward_hook(lambda *_: None)


def not_finite(small: nn.Module) -> None:
    small.head.bias.data[0] = float("nan")


BROKEN: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "other numbers": (scaled, "head.weight holds numbers that the original has not"),
    "channels swapped": (swapped, "masked = dense.*zeroed and small differ"),
    "a hook": (hooked, "hooks are left"),
    "NaN": (not_finite, "not finite|NaN"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_network_is_noticed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, message = BROKEN[case]
    right = nets.pruned

    def broken(given: nets.Case) -> Any:
        model, small, x = right(given)
        damage(small)
        return model, small, x

    monkeypatch.setattr(nets, "pruned", broken)
    given = nets.Case((["Conv"], [], 3), "magnitude", "one_shot", False, {"ratio": 0.3, "of": "params"})
    outcome, note = nets.judged(given)
    assert outcome == "wrong"
    assert re.search(message, note), note


def test_a_budget_that_is_missed_is_noticed() -> None:
    asked = nets.Case((["Conv"], [], 3), "magnitude", "one_shot", False, {"ratio": 0.3, "of": "macs"})
    model, small, x = nets.pruned(asked)
    more = nets.Case(asked.network, asked.criterion, asked.scheduler, False, {"ratio": 0.6, "of": "macs"})
    assert any("0.6 of macs were to go" in fault for fault in nets._faults(more, model, small, x))


def test_what_a_folder_runs_is_noticed(monkeypatch: pytest.MonkeyPatch, few_families: None) -> None:
    def evil(folder: Path) -> nn.Module:
        exec(compile("x = 1", str(folder / "evil.py"), "exec"))
        return fxprune.load(folder, folders.Plain)

    monkeypatch.setattr(folders, "FAMILIES", {"plain": (folders.FAMILIES["plain"][0], evil)})
    folders.bases.cache_clear()
    noticed = [o for o in folders.campaign(range(8), 0) if o.outcome == "executed"]
    assert noticed, "of those whose header can be read"
    assert all("evil.py" in o.note for o in noticed)


def test_what_hangs_or_dies_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    monkeypatch.setattr(sandbox, "PATIENCE", 3.0)

    def trial(number: int) -> Outcome:
        while number == 1:
            pass
        if number == 3:
            time.sleep(1000)
        if number == 4:
            raise SystemExit
        if number == 6:
            torch.zeros(2**40)
        return Outcome(number, "kind", "ok")

    found = {o.number: o.outcome for o in sandbox.trials(range(8), trial)}
    assert found == {0: "ok", 1: "hang", 2: "ok", 3: "hang", 4: "raw", 5: "ok", 6: "raw", 7: "ok"}


def test_a_lost_folder_is_noticed(tmp_path: Path) -> None:
    """A save that is not atomic: the old one goes first."""

    def write(value: float) -> None:
        for path in (tmp_path / "m").glob("*"):
            path.unlink()
        fxprune.save(kills.net(value), tmp_path / "m")

    def load() -> Any:
        return fxprune.load(tmp_path / "m", kills.net())

    def outcome(number: int) -> str:
        try:
            return kills._replaced(random.Random(number), tmp_path, "not atomic", write, load)
        except fxprune.SaveError as e:
            return str(e)

    assert any(outcome(number) for number in range(30))


def test_drawn_networks_are_of_every_block() -> None:
    drawn = [nets.drawn(0, number).network for number in range(300)]
    names = {name for image, token, _ in drawn for name in (*image, *token)}
    assert names == {*nets.networks.IMAGE, *nets.networks.TOKEN}
    assert drawn == [nets.drawn(0, number).network for number in range(300)]
