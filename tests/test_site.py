"""The site, built as `make check` builds it: without a warning, every public name in its place, the packages drawn.

And in all that is written for readers, what is named is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fxprune

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("MkDocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    """Under a heading of its own: a module of the same name would stand in a function's place."""
    page = (site / "api.html").read_text(encoding="utf-8")
    headed = set(re.findall(r'<h\d id="fxprune\.(\w+)" class="doc doc-heading">', page))
    assert set(fxprune.__all__) <= headed
    kinds = dict(
        re.findall(
            r'<h\d id="fxprune\.(\w+)"[^>]*>\s*<code class="doc-symbol doc-symbol-heading doc-symbol-(\w+)', page
        )
    )
    for name in fxprune.__all__:
        assert kinds[name] == ("class" if isinstance(getattr(fxprune, name), type) else "function"), name


def test_the_packages_are_drawn_from_their_imports(site: Path) -> None:
    page = (site / "design.html").read_text(encoding="utf-8")
    drawing = page[page.index("<figure><svg") : page.index("</svg></figure>")]
    boxes = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    sources = {p.name.removesuffix(".py") for p in (ROOT / "fxprune").iterdir() if (p / "__init__.py").exists()}
    alone = {p.stem for p in (ROOT / "fxprune").glob("*.py")} - {"__init__", "errors"}
    assert sorted(boxes) == sorted(sources | alone | {"fxprune"}), "packages that import each other share a box"
    heights = {box: float(y) for y, box in re.findall(r'<text x="[\d.]+" y="([\d.]+)">([^<]*)</text>', drawing)}
    flow = ["graph", "scoring", "planning", "rewriting", "reporting", "pruning", "training", "api", "fxprune", "cli"]
    assert [heights[name] for name in flow] == sorted(heights[name] for name in flow)
    assert not (site / "hooks").exists()


TEXTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "examples/plugin/*.md"]
SOURCES = [
    "fxprune/**/*.py",
    "criteria/*.py",
    "schedulers/*.py",
    "adapters/*.py",
    "benchmarks/**/*.py",
    "examples/**/*.py",
]
NAME = re.compile(r"\bfxprune((?:\.[A-Za-z_]\w*)+)")
FILE = re.compile(
    r"(?<![\w/.])((?:fxprune|criteria|schedulers|adapters|tests|docs|benchmarks|examples)/[\w/]*(?:\.(?:py|md)\b|/(?![\w<*])))"
)
NO_NAMES = {"fxprune.json", "fxprune.array", "fxprune.Packed"}  # a file, keys in what torch writes


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT).as_posix() for t in TEXTS + SOURCES for p in ROOT.glob(t)))
def test_what_is_named_is_there(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    named = {found[0] for found in NAME.finditer(text)} - NO_NAMES
    assert not {name for name in named if not _is_there(name)}
    if path.endswith(".md"):
        assert not {found[1] for found in FILE.finditer(text) if not (ROOT / found[1]).exists()}


def _is_there(name: str) -> bool:
    thing, so_far = fxprune, "fxprune"
    for part in name.split(".")[1:]:
        so_far += f".{part}"
        if not hasattr(thing, part) and importlib.util.find_spec(so_far) is None:
            return False
        thing = getattr(thing, part) if hasattr(thing, part) else importlib.import_module(so_far)
    return True
