"""docs/quality.md says what the committed rows say, and writing the page anew keeps what is written by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUALITY = ROOT / "benchmarks" / "quality"
PAGE = ROOT / "docs" / "quality.md"


def script(name):
    spec = importlib.util.spec_from_file_location(f"quality_{name}", QUALITY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.append(str(QUALITY))  # report.py imports tables
tables, report = script("tables"), script("report")


@pytest.mark.parametrize(
    ("table", "name"), [("untrained", "untrained"), ("recipes", "recipes"), ("schedules", "gpu_soft")]
)
def test_the_page_has_the_table_of_the_rows(table, name):
    rows = tables.read(QUALITY / f"{name}.jsonl")
    assert getattr(tables, table)(rows) in report.kept(PAGE)


def test_the_page_opens_with_what_the_report_says():
    assert PAGE.read_text(encoding="utf-8").startswith(report.INTRO)


def test_what_is_written_by_hand_stays(tmp_path):
    page = tmp_path / "quality.md"
    page.write_text(f"# Quality\n\nold tables\n\n{report.KEPT}\n\n## By hand\n", encoding="utf-8")
    assert report.page([], tmp_path).endswith(f"{report.KEPT}\n\n## By hand\n")
    assert "old tables" not in report.page([], tmp_path)


def test_rows_are_kept_as_they_come(tmp_path):
    def rows():
        yield {"a": 1}
        raise ValueError("the second run fails")

    with pytest.raises(ValueError, match="second run"):
        tables.append(rows(), tmp_path / "rows.jsonl")
    assert tables.read(tmp_path / "rows.jsonl") == [{"a": 1}]


def test_untrained_by_hand():
    same = {"task": "net", "ratio": 0.4}
    rows = [
        {"task": "net", "criterion": "dense", "loss": 0.1},
        {**same, "criterion": "a", "seed": 1, "loss": 0.2},
        {**same, "criterion": "a", "seed": 0, "loss": 0.3},
        {**same, "criterion": "b", "seed": 0, "loss": 0.26},
        {**same, "criterion": "b", "seed": 1, "loss": 0.26},
        {**same, "ratio": 0.6, "criterion": "b", "seed": 0, "loss": 0.5, "accuracy": 0.75},
    ]
    assert tables.untrained(rows).splitlines()[2:] == [
        "| net, 40% | 0.1000 | **0.3000 / 0.2000** | 0.2600 |",
        "| net, 60% | 0.1000 | – | **0.5000 (0.750)** |",
    ]


def test_recipes_by_hand():
    same = {"task": "net", "ratio": 0.6, "steps": 10, "batch": 4}
    losses = {"dense": 0.1, "default": 0.15, "constant 1e-4": 0.2, "constant 2e-4": 0.3}
    rows = [{**same, "recipe": name, "seed": 0, "loss": loss} for name, loss in losses.items()]
    rows.append({**rows[1], "loss": 0.25, "seed": 1})
    assert tables.recipes(rows).splitlines()[2:] == [
        "| net, 60%, 10 steps of 4 | dense | – | 0.1000 | – | – |",
        "| net, 60%, 10 steps of 4 | default | 2 | 0.2000 | 0.50 | 0.25 |",  # of the seed that both have
        "| net, 60%, 10 steps of 4 | constant 1e-4 | 1 | 0.2000 | 1.00 | 0.50 |",
        "| net, 60%, 10 steps of 4 | constant 2e-4 | 1 | 0.3000 | 2.00 | 1.00 |",
    ]


def test_schedules_by_hand():
    same = {"task": "net", "ratio": 0.75, "steps": 10, "batch": 4}
    rows = [{**same, "method": "dense", "ratio": 0.0, "loss": 0.1}]
    for name, losses in (("gradflow weighed per cost", [0.2, 0.4]), ("soft gradflow weighed", [0.25])):
        rows += [{**same, "method": name, "seed": k, "loss": loss} for k, loss in enumerate(losses)]
    assert tables.schedules(rows).splitlines() == [
        "| network, share | steps | dense | one cut | soft |",
        "|---|---|---|---|---|",
        "| net, 75% | 10 of 4 | 0.1000 | 0.3000 ± 0.1000 (2) | 0.2500 ± 0.0000 (1) |",
    ]


def test_every_picture_has_a_name_of_its_own():
    names: set[str] = set()
    first = {"task": "net", "of": "params", "recipe": "half a percent"}
    assert [report.picture(first, names) for _ in range(2)] == [
        "net_params_half_a_percent",
        "net_params_half_a_percent_2",
    ]


def test_only_rows_of_the_same_network_and_recipe_are_compared(tmp_path):
    same = {"task": "digits", "of": "params", "ratio": 0.6, "steps": 10, "batch": 4, "seed": 0, "device": "d"}
    dense = [{**same, "method": "dense", "recipe": "none", "weights": w, "loss": 0.1} for w in ("", "other")]
    rows = [
        {**same, "method": "default", "recipe": recipe, "weights": w, "loss": loss}
        for recipe, w, loss in [("constant 1e-4", "", 0.3), ("default", "", 0.2), ("default", "other", 0.15)]
    ]
    lines = report.recipes(dense + rows).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["dense", "constant 1e-4", "default"]
    assert lines[2].endswith("| 1 | 0.2000 | 0.50 | – |")


def test_no_share_of_a_gap_that_is_none():
    same = {"task": "net", "ratio": 0.6, "steps": 10, "batch": 4}
    losses = {"dense": 0.1, "default": 0.15, "constant 1e-4": 0.2, "constant 2e-4": 0.09}
    rows = [{**same, "recipe": name, "seed": 0, "loss": loss} for name, loss in losses.items()]
    assert tables.recipes(rows).splitlines()[3] == "| net, 60%, 10 steps of 4 | default | 1 | 0.1500 | 0.50 | – |"
