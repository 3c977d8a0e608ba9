"""The help costs no torch, and says of every command what the command says of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from fxprune.cli.main import COMMANDS, real


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_help_and_version_import_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom fxprune.cli import app\n"
        f"try: app({words!r})\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    assert str(real(name).help).strip().splitlines()[0] == COMMANDS[name]


def test_an_unknown_command_is_told() -> None:
    done = CliRunner().invoke(app, ["prun"])
    assert done.exit_code == 2
    assert "prune" in done.output


def test_every_name_is_where_the_stub_says() -> None:
    for name in fxprune.__all__:
        assert getattr(fxprune, name).__module__.startswith("fxprune."), name
    with pytest.raises(AttributeError):
        fxprune.no_such_name  # type: ignore[attr-defined]  # noqa: B018
