"""A list in a file of options is what the flag has with commas between."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from fxprune.cli.config import _defaults
from fxprune.cli.main import real


def test_lists_of_options_that_take_one_text_and_of_those_that_take_several(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("""
criteria = ["taylor", "magnitude"]
ratios = [0.3, 0.5]
models = { mine = "a/b", theirs = "c" }
ignore = ["conv_in", "conv_out"]
""")
    held = _defaults(SimpleNamespace(command=real("compare")), file)  # type: ignore[arg-type]
    assert held["criteria"] == "taylor,magnitude"
    assert held["ratios"] == "0.3,0.5"
    assert held["models"] == ["mine=a/b", "theirs=c"]
    assert held["ignore"] == ["conv_in", "conv_out"]
    file.write_text("criterias = 1")
    with pytest.raises(typer.BadParameter, match="criterias"):
        _defaults(SimpleNamespace(command=real("compare")), file)  # type: ignore[arg-type]
