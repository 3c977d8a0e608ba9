"""Every public function and constructor, for odd arguments: an error of ours that names the argument, or a result."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune

ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "empty text": str, "text": lambda: "odd", "a zero byte": lambda: "\0",
    "minus one": lambda: -1,
    "zero": lambda: 0, "a half": lambda: 0.5, "nan": lambda: float("nan"), "infinity": lambda: float("inf"),
    "huge": lambda: 10**30, "a list": list, "a dict": dict, "a list of None": lambda: [None], "an object": object,
    "bytes": lambda: b"x", "a class": lambda: int, "a tensor": lambda: torch.zeros(2),
}  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


X = torch.ones(2, 4)
NET = net()
GRAPH = fxprune.trace(NET, X)
SCORES = fxprune.score(GRAPH, NET, "magnitude")
PLAN = fxprune.plan(GRAPH, SCORES, 0.5)
SMALL = fxprune.apply(NET, PLAN, example_inputs=X)
DRAFT = PLAN.keep("*")


def loss(model: nn.Module, batch: Any) -> Any:
    return model(batch).pow(2).mean()


def pruner() -> fxprune.Pruner[nn.Module]:
    return fxprune.Pruner(net(), "soft", "magnitude", 0.4, steps=40, example_inputs=X, loss=loss)


@functools.wraps(fxprune.Pruner)
def let_go(**arguments: Any) -> None:
    """A pruner whose masks are taken off again."""
    fxprune.Pruner(**arguments).detach()


def carry() -> fxprune.Carry:
    return fxprune.Carry(NET, SMALL, GRAPH, PLAN)


SENSITIVITY = fxprune.sensitivity(
    NET, shares=(0.5,), example_inputs=X, data=[X], loss=loss, progress=False
)  # of two groups at one share
CHEAP: dict[str, Any] = {"criterion": "magnitude", "ratio": 0.4, "example_inputs": X, "progress": False}

# what is called, with arguments that are right
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "trace": (fxprune.trace, {"model": NET, "example_inputs": X}),
    "score": (fxprune.score, {"graph": GRAPH, "model": NET, "criterion": "magnitude"}),
    "plan": (fxprune.plan, {"graph": GRAPH, "scores": SCORES, "ratio": 0.5}),
    "prune": (fxprune.prune, {"model": NET, **CHEAP}),
    "apply": (fxprune.apply, {"model": NET, "plan": PLAN, "example_inputs": X}),
    "rewrite": (fxprune.rewrite, {"model": NET, "graph": GRAPH, "plan": PLAN}),
    "verify": (fxprune.verify, {"model": NET, "small": SMALL, "graph": GRAPH, "plan": PLAN}),
    "report": (fxprune.report, {"model": SMALL}),
    "compare": (
        fxprune.compare,
        {"model": NET, "criteria": ["magnitude"], "ratios": [0.5], "example_inputs": X, "data": [X], "loss": loss,
         "progress": False},
    ),
    "sensitivity": (
        fxprune.sensitivity,
        {"model": NET, "shares": (0.5,), "example_inputs": X, "data": [X], "loss": loss, "progress": False},
    ),
    "save": (fxprune.save, {"model": SMALL, "directory": "m"}),
    "load": (fxprune.load, {"directory": "saved", "model": NET}),
    "load_pipeline": (fxprune.load_pipeline, {"directory": "saved"}),
    "coupling": (fxprune.coupling, {}),
    "Budget": (fxprune.Budget, {"ratio": 0.5}),
    "Limits": (fxprune.Limits, {}),
    "Training": (fxprune.Training, {"steps": 2}),
    "Distillation": (fxprune.Distillation, {}),
    "Timesteps": (fxprune.Timesteps, {}),
    "Energy": (fxprune.Energy, {}),
    "Average": (fxprune.Average, {"model": NET, "decay": 0.9}),
    "Pruner": (
        let_go,
        {"model": NET, "criterion": "magnitude", "steps": 40, "example_inputs": X, "loss": loss},
    ),
    "Scores": (fxprune.Scores, {"values": SCORES.values, "criterion": "x"}),
    "Scores.from_json": (fxprune.Scores.from_json, {"text": SCORES.to_json()}),
    "Plan.from_json": (fxprune.Plan.from_json, {"text": PLAN.to_json()}),
    "Plan.cost": (PLAN.cost, {"of": "params"}),
    "Plan.check": (PLAN.check, {"graph": GRAPH}),
    "Plan.kept": (PLAN.kept, {"graph": GRAPH}),
    "Plan.keep": (PLAN.keep, {"name": "*"}),
    "Plan.diff": (PLAN.diff, {"other": PLAN}),
    "Plan.same_graph": (PLAN.same_graph, {"other": PLAN}),
    "Plan.__or__": (PLAN.__or__, {"other": PLAN}),
    "Plan.__and__": (PLAN.__and__, {"other": PLAN}),
    "Draft.keep": (DRAFT.keep, {"name": "*"}),
    "Draft.on": (DRAFT.on, {"graph": GRAPH}),
    "Draft.channels": (DRAFT.channels, {"group": GRAPH.groups[0].name}),
    "ChannelGraph.group": (GRAPH.group, {"name": GRAPH.groups[0].name}),
    "ChannelGraph.without": (GRAPH.without, {"names": []}),
    "ChannelGraph.revised": (GRAPH.revised, {"revisions": []}),
    "ChannelGraph.explain": (GRAPH.explain, {"name": "0"}),
    "Sensitivity.ratios": (SENSITIVITY.ratios, {"graph": GRAPH, "ratio": 0.3}),
    "Sensitivity.to_csv": (SENSITIVITY.to_csv, {}),
    "Sensitivity.plot": (SENSITIVITY.plot, {"path": "p.png"}),
    "Pruner.picture": (pruner().picture, {"path": "p.png"}),
    "Pruner.load_state_dict": (pruner().load_state_dict, {"state": pruner().state_dict()}),
    "Average.step": (fxprune.Average(NET, 0.9).step, {"model": NET}),
    "Average.load_state_dict": (fxprune.Average(NET, 0.9).load_state_dict, {"state": {}}),
    "Carry.optimizer": (carry().optimizer, {"optimizer": torch.optim.SGD(NET.parameters(), 0.1)}),
    "Carry.tensors": (carry().tensors, {"averaged": list(NET.parameters())}),
    "Carry.named": (carry().named, {"averaged": dict(NET.named_parameters())}),
    "Carry.module": (carry().module, {"averaged": NET}),
}  # fmt: skip


# Where a value of the right kind is refused, the message speaks of what it stands for.
STANDS_FOR = {
    "text": ("not a plan", "not scores"), "name": ("group",), "of": ("count",), "averaged": ("tensors",),
    "directory": ("folder", "holds files"), "path": ("written", "no step"), "names": ("coupling",),
    "training": ("steps",), "criteria": ("criterion",), "ignore": ("cannot be removed",), "criterion": ("criteria",),
}  # fmt: skip


def odd_calls(name: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Every argument with every odd value, the others right."""
    call, right = CALLS[name]
    for parameter in inspect.signature(call).parameters.values():
        for what, value in ODD.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                yield parameter.name, what, lambda value=value: call(value())
            elif parameter.kind is not parameter.VAR_KEYWORD:
                yield parameter.name, what, lambda n=parameter.name, value=value: call(**{**right, n: value()})


@pytest.mark.parametrize("name", CALLS)
def test_an_odd_argument_is_an_error_of_ours_that_names_it_or_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fxprune.save(SMALL, "saved")
    raw, nameless, called = [], [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for argument, what, call in odd_calls(name):
            called += 1
            try:
                call()
            except fxprune.FxPruneError as e:
                if not any(word in str(e) for word in (argument, *STANDS_FOR.get(argument, ()))):
                    nameless.append(f"{argument}={what}: {e}")
            except Exception as e:  # noqa: BLE001 - that is what is looked for
                raw.append(f"{argument}={what}: {type(e).__name__}: {e}")
    assert called, "it takes arguments"
    assert not raw
    assert not nameless
