"""Every public function and constructor, for odd arguments: an error of ours that names the argument, or a result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import CALLS, SMALL, arguments_of, called, names_it

import fxprune

ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "empty text": str, "text": lambda: "odd", "a zero byte": lambda: "\0",
    "minus one": lambda: -1,
    "zero": lambda: 0, "a half": lambda: 0.5, "nan": lambda: float("nan"), "infinity": lambda: float("inf"),
    "huge": lambda: 10**30, "a list": list, "a dict": dict, "a list of None": lambda: [None], "an object": object,
    "bytes": lambda: b"x", "a class": lambda: int, "a tensor": lambda: torch.zeros(2),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_odd_argument_is_an_error_of_ours_that_names_it_or_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fxprune.save(SMALL, "saved")
    raw, nameless, tried = [], [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for argument in arguments_of(name):
            for what, value in ODD.items():
                tried += 1
                try:
                    called(name, {argument: value()})
                except fxprune.FxPruneError as e:
                    if not names_it(argument, str(e)):
                        nameless.append(f"{argument}={what}: {e}")
                except Exception as e:  # noqa: BLE001 - that is what is looked for
                    raw.append(f"{argument}={what}: {type(e).__name__}: {e}")
    assert tried, "it takes arguments"
    assert not raw
    assert not nameless
