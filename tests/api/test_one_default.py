"""One criterion is the default of everything that scores, and the first page shows what it does."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import registry
from fxprune.cli.compare import compare as cli_compare
from fxprune.cli.main import app
from fxprune.cli.prune import prune as cli_prune
from fxprune.cli.sensitivity import sensitivity as cli_sensitivity
from fxprune.pruning.order import Scoring
from fxprune.scoring.score import COMPARED, DEFAULT_CRITERION

ROOT = Path(__file__).resolve().parents[2]
ENTRIES: tuple[Callable[..., Any], ...] = (
    fxprune.prune,
    fxprune.Pruner,
    fxprune.score,
    fxprune.sensitivity,
    fxprune.search,
    fxprune.family,
    cli_prune,
    cli_sensitivity,
    Scoring,
)


def default(call: Callable[..., Any], name: str) -> Any:
    return inspect.signature(call).parameters[name].default


@pytest.mark.parametrize("call", ENTRIES, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_entry_point_has_the_same_default(call: Callable[..., Any]) -> None:
    assert default(call, "criterion") == DEFAULT_CRITERION
    assert DEFAULT_CRITERION in registry.names("criteria")


def test_comparisons_begin_with_it() -> None:
    assert default(fxprune.compare, "criteria") == COMPARED
    assert default(cli_compare, "criteria") == ",".join(COMPARED)
    assert COMPARED[0] == DEFAULT_CRITERION


def test_whatever_has_a_criterion_shares_it() -> None:
    """Also what is added later: every public callable and every command with a `criterion` that may be left out."""
    public = [getattr(fxprune, name) for name in fxprune.__all__]
    commands = [c.callback for c in app.registered_commands if c.callback is not None]
    held = []
    for call in (*filter(callable, public), *commands):
        try:
            given = inspect.signature(call).parameters.get("criterion")
        except ValueError:
            continue
        if given is not None and given.default not in (inspect.Parameter.empty, None, ""):
            held.append(call.__name__)
            assert given.default == DEFAULT_CRITERION, call
    assert {"prune", "Pruner", "score", "sensitivity"} <= set(held)


def test_the_demo_uses_it() -> None:
    pytest.importorskip("diffusers")
    run = pytest.importorskip("fxprune.demo.run")
    assert default(run.main, "criterion") == run.DemoOptions().criterion == DEFAULT_CRITERION


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/quickstart.md"])
def test_the_first_snippet_of_a_page_is_the_default(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    first = re.search(r"fxprune\.prune\((.*)\)", text)
    assert first is not None
    assert "criterion" not in first[1]
    assert '"' not in first[1]


def plain() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(2, 4)


def test_without_data_a_plain_module_is_told_what_to_pass() -> None:
    net, x = plain()
    graph = fxprune.trace(net, x)
    calls: list[Callable[[], Any]] = [
        lambda: fxprune.score(graph, net),
        lambda: fxprune.prune(net, ratio=0.5, example_inputs=x, progress=False),
        lambda: fxprune.sensitivity(net, example_inputs=x, progress=False),
        lambda: fxprune.sensitivity(net, example_inputs=x, metric=lambda m: 0.0, progress=False),
    ]
    for call in calls:
        with pytest.raises(fxprune.InputsError) as caught:
            call()
        assert re.search(r"pass data=, .* and loss=, .*criterion=\"magnitude\"", str(caught.value)), str(caught.value)
    with pytest.raises(fxprune.InputsError, match=r"pass loss=, .* criterion=\"magnitude\""):
        fxprune.Pruner(net, steps=20, example_inputs=x)
    with pytest.raises(fxprune.InputsError, match=r"pass data=, .* and loss="):
        fxprune.compare(net, example_inputs=x, progress=False)


def test_what_is_said_to_help_does() -> None:
    net, x = plain()
    graph = fxprune.trace(net, x)
    assert fxprune.score(graph, net, criterion="magnitude").criterion == "magnitude"
    given: dict[str, Any] = {"data": [x], "loss": lambda m, b: (m(b) - 1).square().mean()}
    assert fxprune.score(graph, net, **given).criterion == DEFAULT_CRITERION
    small = fxprune.prune(net, ratio=0.5, example_inputs=x, progress=False, **given)
    assert json.loads(fxprune.report(small).plan.to_json())["criterion"] == DEFAULT_CRITERION
