"""The tables of the documentation are those of the committed rows, and each is what its rows say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [p for p in (ROOT / "docs").glob("*.md") if "<!-- table: " in p.read_text(encoding="utf-8")]


def _tables():
    spec = importlib.util.spec_from_file_location("quality_tables_alone", ROOT / "benchmarks" / "quality" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = _tables()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_table_is_what_its_rows_make(page):
    """Else type: python benchmarks/quality/tables.py docs/*.md"""
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text


def test_a_table_is_written_in_its_place_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "HERE", tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        '{"task": "net", "ratio": 0.6, "steps": 9, "batch": 4, "recipe": "dense", "loss": 0.1}\n'
        '{"task": "net", "ratio": 0.6, "steps": 9, "batch": 4, "recipe": "outputs 1", "seed": 0, "loss": 0.3}\n'
        '{"task": "net", "ratio": 0.6, "steps": 9, "batch": 4, "recipe": "b", "seed": 0, "loss": 0.2}\n'
    )
    mark = "<!-- table: recovery of rows.jsonl -->"
    other = "| another | table |\n|---|---|\n"
    for old in ("", "| old | table |\n|---|---|\n| 1 | 2 |\n"):
        page = tables.filled(f"Before.\n\n{mark}\n\n{old}\nAfter.\n\n{other}")
        assert page.startswith(f"Before.\n\n{mark}\n\n| network | recipe |")
        assert "| | b | 1 | 0.20000 | 0.50 |\n" in page
        assert page.endswith(f"|\n\nAfter.\n\n{other}")
        assert "| old |" not in page
        assert tables.filled(page) == page


def test_training_free_by_hand():
    same = {"task": "vit", "ratio": 0.25}
    rows = [{**same, "method": "dense", "weights": w, "loss": 0.1 + 0.1 * w, "accuracy": 0.9} for w in (0, 1)]
    rows += [
        {
            **same,
            "method": m,
            "select": "a",
            "weights": w,
            "loss": loss,
            "rise": rise,
            "rise_error": 0.04,
            "kl": 0.5 * w,
        }
        for m, w, loss, rise in [("cut", 0, 0.3, 2), ("cut", 1, 0.5, 4), ("obs", 0, 0.1, 0.02), ("obs", 1, 0.2, 0.04)]
    ]
    rows += [{"task": "ddpm", "ratio": 0.25, "method": "dense", "loss": 0.1}]
    rows += [
        {"task": "ddpm", "ratio": 0.25, "method": m, "select": "a", "loss": 0.11, "rise": 0.1} for m in ("cut", "obs")
    ]
    assert tables.training_free(rows).splitlines()[2:] == [
        "| vit, 25% | 0.1500 (0.900) | a | 0.4000 (+300.0% ± 4.0%) | 0.1500 (+3.0% ± 4.0%) | 0.2500 | 2 |",
        "| ddpm, 25% | 0.1000 | a | 0.1100 (+10.0%) | 0.1100 (+10.0%) | – | 1 |",
    ]


def test_depth_by_hand():
    same = {"task": "vit", "steps": 40}
    rows = [{**same, "way": "dense", "weights": w, "untrained": {"loss": 0.1 + 0.2 * w}} for w in (0, 1)]
    for w in (0, 1):
        for way, loss in (("by scores", 0.4), ("linear", 0.5 + w)):
            told = {"blocks": 4, "latency": 0.75, "untrained": {"loss": loss}, "trained": {"loss": loss / 2}}
            rows.append({**same, "way": way, "weights": w, "ratio": 0.3, **told})
    assert tables.depth(rows).splitlines() == [
        "| network | asked | way | networks | blocks gone | latency | loss | after 40 steps |",
        "|---|---|---|---|---|---|---|---|",
        "| vit (dense 0.2000) | 30% | by scores | 2 | 4 | 0.75 | 0.4000 ± 0.0000 | 0.2000 ± 0.0000 |",
        "|  |  | linear | 2 | 4 | 0.75 | 1.0000 ± 0.5000 | 0.5000 ± 0.2500 |",
    ]


def test_networks_from_several_seeds_stand_side_by_side():
    same = {"task": "net", "ratio": 0.4, "criterion": "a", "seed": 0}
    rows = [{"task": "net", "criterion": "dense", "weights": w, "loss": 0.1 + 0.1 * w} for w in (0, 1)]
    rows += [{**same, "weights": 1, "loss": 0.4}, {**same, "weights": 0, "loss": 0.3}]
    assert tables.untrained(rows).splitlines()[2:] == ["| net, 40% | 0.1500 | **0.3000 / 0.4000** |"]
