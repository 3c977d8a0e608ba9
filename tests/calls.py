"""Every public function and constructor with arguments that are right, for tests of what they say to odd ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune import registry
from fxprune.planning.cost_model import CostModel


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


def squared(model: nn.Module) -> float:
    return float(model(X).pow(2).mean())


def pruner() -> fxprune.Pruner[nn.Module]:
    return fxprune.Pruner(net(), "soft", "magnitude", 0.4, steps=40, example_inputs=X, loss=loss)


@functools.wraps(fxprune.Pruner)
def let_go(**arguments: Any) -> None:
    """A pruner whose masks are taken off again."""
    fxprune.Pruner(**arguments).detach()


def over() -> fxprune.Pruner[nn.Module]:
    """A pruner whose schedule is over."""
    made = pruner()
    while not made.done:
        made.step(X)
    return made


def carry() -> fxprune.Carry:
    return fxprune.Carry(NET, SMALL, GRAPH, PLAN)


SENSITIVITY = fxprune.sensitivity(
    NET, shares=(0.5,), example_inputs=X, data=[X], loss=loss, criterion="magnitude", progress=False
)  # of two groups at one share; without autograd, which would not run in forks of this process any more
MEASURED: dict[str, Any] = {"example_inputs": X, "data": [X], "loss": loss, "progress": False}
SCORED: dict[str, Any] = {"criterion": "magnitude", "example_inputs": X, "progress": False}
SEARCH = fxprune.search(NET, squared, {"params": 0.5}, trials=1, **SCORED)
CHEAP: dict[str, Any] = {"criterion": "magnitude", "ratio": 0.4, "example_inputs": X, "progress": False}

# what is called, with arguments that are right
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "trace": (fxprune.trace, {"model": NET, "example_inputs": X}),
    "parts": (fxprune.parts, {"model": nn.Sequential(NET), "example_inputs": X}),
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
    "search": (fxprune.search, {"model": NET, "metric": squared, "budgets": {"params": 0.5}, "trials": 1, **SCORED}),
    "family": (fxprune.family, {"model": NET, "ratios": [0.5], **SCORED}),
    "Search.to_csv": (SEARCH.to_csv, {}),
    "Search.plot": (SEARCH.plot, {"path": "s.png"}),
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
    "Carry": (fxprune.Carry, {"model": NET, "small": SMALL, "graph": GRAPH, "plan": PLAN}),
    "Average.copy_to": (fxprune.Average(NET, 0.9).copy_to, {"model": net()}),
    "Average.cut": (fxprune.Average(NET, 0.9).cut, {"carry": carry()}),
    "Comparison.plot": (fxprune.compare(NET, ["magnitude"], [0.5], **MEASURED).plot, {"path": "c.png"}),
    "Budget.share": (fxprune.Budget(0.5).share, {"costs": CostModel(GRAPH)}),
    "Training.rate": (fxprune.Training(4).rate, {"step": 1}),
    "Training.made": (fxprune.Training(4).made, {"parameters": list(net().parameters())}),
    "Pruner.step": (lambda batch=None, loss=None: pruner().step(batch, loss), {"batch": X}),
    "Pruner.finish": (lambda optimizer=None, ema=None: over().finish(optimizer, ema), {}),
    **{f"criterion {n}": (registry.get("criteria", n), {}) for n in registry.names("criteria")},
    **{f"scheduler {n}": (registry.get("schedulers", n), {}) for n in registry.names("schedulers")},
}  # fmt: skip
CALLS = {name: call for name, call in CALLS.items() if inspect.signature(call[0]).parameters}


# Where a value of the right kind is refused, the message speaks of what it stands for.
STANDS_FOR = {
    **dict.fromkeys(("subfolder", "revision", "variant", "token", "torch_dtype"), ("use fxprune.load", "no folder")),
    "text": ("not a plan", "not scores"), "name": ("group",), "of": ("count",), "averaged": ("tensors",),
    "directory": ("folder", "holds files"), "path": ("written", "no step"), "names": ("coupling", "block"),
    "training": ("steps",), "small": ("pruned",), "criteria": ("criterion",),
    "ignore": ("cannot be removed",), "criterion": ("criteria",),
}  # fmt: skip


def arguments_of(name: str) -> list[str]:
    """The arguments of a call, but for what takes any keyword."""
    parameters = inspect.signature(CALLS[name][0]).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]


def called(name: str, odd: dict[str, Any]) -> Any:
    """The call with some arguments in place of the right ones."""
    call, right = CALLS[name]
    row = [p.name for p in inspect.signature(call).parameters.values() if p.kind is p.VAR_POSITIONAL]
    listed = [odd[n] for n in row if n in odd]
    return call(*listed, **{**right, **{n: v for n, v in odd.items() if n not in row}})


def names_it(argument: str, message: str) -> bool:
    """Whether a message names an argument, or what it stands for."""
    return any(word in message for word in (argument, *STANDS_FOR.get(argument, ())))
