"""A run's line is shown where it was asked for, and only there."""

from __future__ import annotations

import pytest

from fxprune.reporting.history import Told
from fxprune.training.display import bar


@pytest.mark.parametrize("shown", [False, True])
def test_a_line_is_shown_if_asked_for(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with bar(shown, 4, 1) as tell:
        tell(Told(2, 0.25, {}), 0.25)
    assert ("loss 0.25" in capsys.readouterr().out) is shown
