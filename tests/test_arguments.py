"""Every public function and constructor, for odd arguments: an error of ours that names the argument, or a result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    "a dict by numbers": lambda: {1: 2}, "a flag of numpy": lambda: np.False_,
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


class NoTruth:
    """A loss that cannot be asked whether it is one."""

    def __bool__(self) -> bool:
        raise AssertionError("a loss was asked whether it is true")

    def __call__(self, model: Any, batch: Any) -> Any:
        return model(batch).square().mean()


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("Training.made", {"parameters": [torch.zeros(2, 2, device="meta")]}),
        ("Training.made", {"parameters": [torch.zeros(2, 2, requires_grad=True) * 2]}),
        ("compare", {"models": {"mine": "no model"}}),
        ("save", {"metrics": {1: 0.5}}),
    ],
)
def test_what_campaigns_found_is_named(
    name: str, odd: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fxprune.FxPruneError, match=f"{next(iter(odd))}(=|\\[)"):
        called(name, odd)


@pytest.mark.parametrize("name", ["prune", "compare", "sensitivity"])
def test_a_loss_is_called_and_not_asked_whether_it_is_true(name: str) -> None:
    called(name, {"loss": NoTruth()})
