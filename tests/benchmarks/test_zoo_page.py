"""docs/zoo.md and README say what the committed rows say, and `ok` asks for the budget."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "benchmarks" / "zoo"


@pytest.fixture
def script(monkeypatch):
    """A file of the zoo, by its name; as a script it finds those beside it."""
    monkeypatch.syspath_prepend(str(ZOO))
    before = set(sys.modules)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"zoo_{name}", ZOO / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ZOO)):
            del sys.modules[name]


def rows():
    return [json.loads(line) for line in (ZOO / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_page_is_that_of_the_rows(script):
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert page == script("report").document(rows())


def test_the_readme_counts_the_rows():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = re.search(r"Of (\d+) networks of .*? asked for half, ([\d.]+) % .*?(\d+|none) comes? out wrong", text)
    ran = [r for r in rows() if r["status"] != "broken"]
    good, wrong = (sum(r["status"] == s for r in ran) for s in ("ok", "wrong"))
    assert told.groups() == (str(len(ran)), f"{100 * good / len(ran):.1f}", str(wrong or "none"))


def test_every_row_is_one_network_with_its_versions():
    names = [r["name"] for r in rows()]
    assert len(names) == len(set(names))
    assert all(r["versions"].startswith("torch ") for r in rows())


class Two(nn.Module):
    """Two layers; `width` is the only one that can change."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.b(self.a(x))


def case(script, width):
    return script("case").Case("two", "own", lambda: Two(width), lambda b: torch.randn(b, 4))


@pytest.mark.parametrize("width", [3, 5, 40])
def test_ok_is_the_asked_half_as_near_as_the_steps_come(script, width):
    record = script("judge").judge(case(script, width), lambda record: None, certify=False)
    assert record["status"] == "ok", record["reason"]
    assert abs(record["removed"] - 0.5) <= max(0.005, 9 / (9 * width + 4))


def test_less_than_was_asked_is_weak(script, monkeypatch):
    judge = script("judge")
    whole = judge.pruned
    monkeypatch.setattr(judge, "pruned", lambda dense, case, ratio: whole(dense, case, min(ratio, 0.4)))
    assert judge.met(Two(40), case(script, 40), 0.4)  # nothing nearer comes back
    monkeypatch.setattr(judge, "pruned", whole)
    assert not judge.met(Two(40), case(script, 40), 0.4)
    assert judge.met(Two(40), case(script, 40), 0.4959)
