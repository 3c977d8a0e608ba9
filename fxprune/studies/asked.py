"""What a comparison is asked for, checked: criteria and models by their names, schedulers, and how they train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxprune import registry
from fxprune.adapter import find_adapter
from fxprune.errors import CriterionError, InputsError
from fxprune.pruning.order import Order
from fxprune.scoring.identity import told
from fxprune.scoring.score import Criterion, resolve
from fxprune.training.options import Training
from fxprune.training.scheduler import Scheduler, scheduler_of


@dataclass(frozen=True)
class Runs:
    """How models are trained: schedulers by their labels; {"": ...} and no training where they are not."""

    schedulers: Mapping[str, str | Scheduler]
    training: Training | None = None

    @property
    def steps(self) -> int:
        return 0 if self.training is None else self.training.total


def trainer() -> Callable[[nn.Module, Scheduler, Training, Order], nn.Module]:
    """What trains.

    Raises:
        InputsError: accelerate is not installed.
    """
    try:  # accelerate is optional
        from fxprune.training.run import trained
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "accelerate":
            raise
        raise InputsError('training needs accelerate: pip install "fxprune[train]"') from e
    return trained


def runs_of(schedulers: Sequence[str | Scheduler], steps: int | None, training: Training | None, data: Any) -> Runs:
    """What was asked, checked.

    Raises:
        InputsError: schedulers without steps, steps without data, or both ways to say them; two schedulers of one name.
        PluginError: a scheduler's name is unknown.
    """
    if steps is not None and training is not None:
        raise InputsError(f"steps={steps} and training= both say how long: pass one of them")
    if steps is None and training is None:
        if schedulers:
            raise InputsError("schedulers= train a model: pass steps=, such as 500, and data= to train on")
        return Runs({"": ""})
    if data is None:
        raise InputsError("steps= trains a model: pass data=, batches to train on, and held_out= to measure on")
    trainer()
    made = [scheduler_of(s) for s in schedulers or ("one_shot",)]
    names = [s if isinstance(s, str) else type(s).__name__ for s in schedulers or ("one_shot",)]
    if len(set(names)) < len(names):
        shown = [repr(s) for s in made]
        names = shown if len(set(shown)) == len(shown) else names
    if len(set(names)) < len(names):
        raise InputsError(f"two of the schedulers are called the same: {', '.join(names)}")
    return Runs(dict(zip(names, made, strict=True)), training or Training(steps or 1))


def labelled(criteria: Sequence[str | Criterion]) -> dict[str, str | Criterion]:
    """Label of a row -> criterion.

    Raises:
        InputsError: two different ones would have the same label.
    """
    labels: dict[str, str | Criterion] = {}
    for c in criteria:
        label = _label(c)
        if told(labels.setdefault(label, c)) != told(c):
            raise InputsError(f"two of the criteria are called {label!r}; give functions names of their own")
    return labels


def _label(criterion: str | Criterion) -> str:
    """A criterion's name in the table.

    Raises:
        CriterionError: nobody registered that name.
    """
    if not isinstance(criterion, str):
        return resolve(criterion)[1]
    if criterion not in registry.names("criteria"):
        registry.get("criteria", criterion)
        raise CriterionError(f"there is no criterion called {criterion!r}")
    return criterion


def networks(models: Mapping[Any, Any], taken: Iterable[str]) -> dict[str, nn.Module]:
    """Label of a row -> the network of a finished model, taken out of its pipeline.

    Args:
        taken: labels of criteria.

    Raises:
        InputsError: something is no model, has no name, or has that of a criterion.
    """
    found: dict[str, nn.Module] = {}
    for name, model in models.items():
        if not isinstance(name, str) or not name or name in set(taken):
            raise InputsError(f"models= has the name {name!r}; give each one that is no criterion's, such as 'mine'")
        try:
            found[name] = find_adapter(model).unwrap(model)[0]
        except InputsError as e:
            raise InputsError(f"models[{name!r}]: {e}") from e
    return found
