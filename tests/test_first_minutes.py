"""A stranger's first minutes: the shell commands of README and of the page about the command line, as they stand there.

Their Python is run by test_docs.py.  Both work on tiny folders under the paths that the pages name.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import small_folders
from typer.testing import CliRunner

from fxprune.cli import app
from fxprune.cli.main import COMMANDS

pytest.importorskip("diffusers")
pytest.importorskip("timm")
pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(bash|toml)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.toml)\n")
LONG = re.compile(r"^(saved in|report in|plan in|ONNX in|rows and picture in) |\[\+|/")  # paths stay whole
NOT_RUN = {"demo"}  # minutes; tests/demo runs it


def commands(page: str) -> list[list[str]]:
    """The lines of the page that call fxprune, as words."""
    blocks = [text for kind, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if kind == "bash"]
    lines = [line for text in blocks for line in text.splitlines() if line.startswith("fxprune ")]
    return [shlex.split(line.replace("timm:resnet18", small_folders.CNN))[1:] for line in lines]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of, the example plugin installed."""
    root = tmp_path_factory.mktemp("world")
    small_folders.world(root)
    small_folders.plugin(root / "plugin")
    return root


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_commands_run_as_they_stand_and_fit_80_columns(
    page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(world / "plugin")
    (tmp_path / "path").symlink_to(world / "path")
    for kind, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if kind == "toml" and (name := FILE.match(text)):
            (tmp_path / name[1]).write_text(text)
    for words in commands(page):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{words}: {done.output} {done.exception}"
        if "--json" in words:
            assert json.loads(done.stdout)
        else:
            wide = [line for line in done.stdout.splitlines() if len(line) > 80 and not LONG.search(line)]
            assert not wide, words
        if "-o" in words:
            assert Path(words[words.index("-o") + 1]).exists(), words


def test_readme_prunes_every_family_and_with_a_plugin() -> None:
    said = [words[1] for words in commands("README.md") if words[0] == "prune"]
    assert said == ["path/to/stable-diffusion", small_folders.CNN, "path/to/llama", small_folders.CNN]


def test_every_command_has_its_example() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert {words[0] for words in commands("docs/cli.md")} | NOT_RUN == set(COMMANDS)
    assert all(f"fxprune {name}" in page for name in NOT_RUN)
