"""The runs of a grid: in the order asked for, each once, going on after an error and stopping in time."""

import json
import sys
import time
from pathlib import Path

import pytest

QUALITY = Path(__file__).parents[2] / "benchmarks" / "quality"
ANSWERING = """
import sys
sys.path.insert(0, {folder!r})
import pool, time

def run(row):
    print("told on the way")
    if row.get("fails"):
        raise ValueError("it fails")
    if row.get("dies"):
        sys.exit(3)
    time.sleep(row.get("sleeps", 0))
    return {{**row, "done": True}}

pool.serve(run)
"""


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.syspath_prepend(str(QUALITY))
    import pool

    return pool


@pytest.fixture
def worker(pool, tmp_path):
    script = tmp_path / "answering.py"
    script.write_text(ANSWERING.format(folder=str(QUALITY)), encoding="utf-8")
    made = pool.Worker([sys.executable, str(script)], tmp_path / "answering.log")
    yield made
    made.end()


def test_one_process_answers_row_after_row(worker):
    first = worker.run({"a": 1})
    process = worker.process
    assert first == {"a": 1, "done": True}
    assert worker.run({"a": 2})["a"] == 2
    assert worker.process is process


def test_after_an_error_a_fresh_process_goes_on(worker):
    assert worker.run({"fails": True})["error"] == "ValueError: it fails"
    assert "Traceback" in worker.log.read_text()
    assert "told on the way" in worker.log.read_text()
    assert "the process ended" in worker.run({"dies": True})["error"]
    assert worker.run({"a": 1}) == {"a": 1, "done": True}


def test_no_run_starts_too_late_and_none_goes_on_for_ever(pool, worker):
    kept = []
    pool.all_of([{"sleeps": 600}, {"a": 1}], [worker], kept.append, until=time.monotonic(), grace=0)
    assert kept == []
    worker.run({"a": 0})
    pool.all_of([{"sleeps": 600}, {"a": 1}], [worker], kept.append, time.monotonic() + 1, grace=0)
    assert kept == []
    assert worker.process is None


def test_rows_come_in_their_order(pool, worker):
    kept = []
    pool.all_of([{"a": k} for k in range(4)], [worker], kept.append)
    assert [row["a"] for row in kept] == [0, 1, 2, 3]
    assert worker.process is not None


@pytest.fixture
def sweep(monkeypatch):
    pytest.importorskip("torch_pruning")
    monkeypatch.syspath_prepend(str(QUALITY))
    import sweep

    return sweep


def test_the_grids_are_of_known_runs(sweep):
    for name in ("grid.json", "soft_grid.json", "recipe_grid.json"):
        rows = list(sweep.expanded(json.loads((QUALITY / name).read_text())))
        assert len(rows) > 50
        assert all(list(row) == list(sweep.KEY) for row in rows)
    with pytest.raises(SystemExit, match="method 'other' is unknown"):
        list(sweep.expanded([{**sweep.DENSE, "task": "digits", "method": "other"}]))


def test_the_first_key_varies_slowest_and_no_run_comes_twice(sweep):
    same = {"ratio": 0.6, "steps": 1, "batch": 1, "task": "digits"}
    part = {"seed": [0, 1], "method": ["taylor", "magnitude"], **same}
    rows = [(r["seed"], r["method"]) for r in sweep.expanded([part, part])]
    assert rows == [(0, "taylor"), (0, "magnitude"), (1, "taylor"), (1, "magnitude")]


def test_what_is_there_is_not_run_again_unless_it_failed(sweep, tmp_path):
    part = {"ratio": 0.6, "steps": 1, "batch": 1, "task": "digits", "seed": 0}
    rows = list(sweep.expanded([{**part, "method": ["taylor", "magnitude", "random"]}]))
    out = tmp_path / "rows.jsonl"
    told = [json.dumps({**rows[0], "loss": 1.0}), json.dumps({**rows[1], "error": "it fails"})]
    out.write_text("\n".join(told) + "\n", encoding="utf-8")
    assert [r["method"] for r in sweep.missing(rows, out)] == ["magnitude", "random"]
