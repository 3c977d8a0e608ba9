"""How pruning unfolds while a model trains: what a scheduler is given, and what it has to be.

Scheduler.begin(problem)  ->  Flow          schedulers are options (frozen dataclasses), flows are runs
Flow.refresh(values)                        fresh scores, whenever `Flow.due`
Flow.step()               ->  mask          one number a channel, after each optimizer step
Flow.plan                                   what goes, once the run is over
"""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from fxprune import registry
from fxprune.errors import PluginError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.budget import Budget
from fxprune.planning.cost_model import CostModel
from fxprune.planning.limits import NONE, Limits
from fxprune.planning.plan import Plan
from fxprune.planning.planner import planned
from fxprune.planning.selection import ranking

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Values = Mapping[str, Floats]
KEPT = 2.0  # the score of channels that no move may take; the others' lie in [0, 1]


@dataclass(frozen=True, eq=False)
class Problem:
    """A graph, a budget, and the number of steps in which to meet it.

    Masks and scores of all channels are vectors of shape (n,), the groups one after the other.

    Attributes:
        steps: how many steps the flow may take.
        limits: what plans keep to.
    """

    graph: ChannelGraph
    ratio: float
    steps: int
    of: str = "params"
    limits: Limits = NONE

    @functools.cached_property
    def cost(self) -> CostModel:
        return CostModel(self.graph)

    @functools.cached_property
    def components(self) -> Ints:
        """Component of every channel."""
        return np.concatenate([g.components for g in self.graph.groups])

    @functools.cached_property
    def starts(self) -> Ints:
        """Where each group begins in a vector of all channels, and the end: shape (groups + 1,)."""
        return np.cumsum([0] + [len(g) for g in self.graph.groups])

    @functools.cached_property
    def group_of(self) -> Ints:
        """Index of every channel's group."""
        return np.repeat(np.arange(len(self.graph.groups)), np.diff(self.starts))

    def flat(self, values: Values) -> Floats:
        """Scores by group as one vector."""
        return np.concatenate([np.asarray(values[g.name], float) for g in self.graph.groups])

    def by_group(self, flat: Floats) -> dict[str, Floats]:
        """A vector as scores by group."""
        return {g.name: flat[a:b] for g, a, b in zip(self.graph.groups, self.starts, self.starts[1:], strict=False)}

    def means(self, flat: Floats) -> Floats:
        """The mean of every group."""
        sizes = np.diff(self.starts)
        return np.bincount(self.group_of, flat, len(sizes)) / np.maximum(sizes, 1)

    def plan(self, values: Values, ratio: float | None = None) -> Plan:
        """What goes at the given ratio (the final one by default), every constraint satisfied."""
        return planned(self.graph, values, Budget(self.ratio if ratio is None else ratio, self.of), self.limits)

    def mask(self, plan: Plan) -> Floats:
        """A plan as a mask of zeros and ones."""
        return plan.kept(self.graph)[self.components].astype(float)

    def remaining(self, mask: Floats) -> float:
        """Share of the cost that is left under a mask; between zero and one a channel counts in part."""
        lost = self._lost(mask)
        return self.cost.of(self.of, lost) / self._total

    def shares(self, mask: Floats) -> Floats:
        """What each channel is worth at a mask: the share of the cost that goes with it (at least a trifle)."""
        lost = self._lost(mask)
        here = self.cost.of(self.of, lost)
        room = np.diff(self.starts) - lost
        each = np.zeros(len(lost))
        for g in range(len(lost)):
            step = min(1.0, room[g] / 2) or 1.0
            lost[g] += step
            each[g] = max(here - self.cost.of(self.of, lost), 0.0) / step
            lost[g] -= step
        return np.maximum(each / self._total, 1e-12)[self.group_of]

    def quantiles(self, values: Values, shares: Floats) -> Floats:
        """The cost that would go before each channel does, as a share of all: in [0, 1], `KEPT` for those that stay.

        Channels that must go together, since a norm needs them balanced, share one quantile.
        """
        out = np.full(len(shares), KEPT)
        queue = ranking(self.graph, values, self.limits)
        at = self.starts[queue.removals.group] + queue.removals.channel
        move = np.repeat(np.arange(len(queue.part)), np.diff(queue.removals.ends))
        before = np.cumsum(np.bincount(move, shares[at], len(queue.part)))
        out[at] = (before / max(shares.sum(), 1e-30))[move]
        return out

    def _lost(self, mask: Floats) -> Floats:
        """Channels that every group has lost, those between zero and one in part."""
        return np.bincount(self.group_of, 1 - mask, len(self.graph.groups)).astype(float)

    @functools.cached_property
    def _total(self) -> float:
        return self.cost.of(self.of, np.zeros(len(self.graph.groups)))


class Flow(abc.ABC):
    """One run of a scheduler.  Its state is what `state_dict` returns: numbers and a few vectors.

    A subclass with an `__init__` of its own calls `super().__init__(problem)`, which sets the first four.

    Attributes:
        problem: what was asked.
        taken: steps so far; `step` counts it up by one.
        mask: one number a channel, shape (n,), at first ones; `step` sets and returns it.
        chosen: the plan that goes, set at the latest in the last step.
        due: whether `refresh` has to be called before the next step; `refresh` clears it, `step` may set it.
        done: read only: whether `taken` has come to `problem.steps`; `plan` is then what goes.
        decay: extra weight decay of each channel from this step on, shape (n,), or None.
        sample: the share of the batches kept for scoring that a refresh needs.
    """

    due: bool = True
    sample: float = 1.0
    decay: Floats | None = None

    def __init__(self, problem: Problem) -> None:
        self.problem, self.taken = problem, 0
        self.mask: Floats = np.ones(len(problem.components))
        self.chosen: Plan | None = None

    @property
    def done(self) -> bool:
        return self.taken >= self.problem.steps

    @done.setter
    def done(self, value: bool) -> None:
        raise PluginError(
            f"{type(self).__name__} sets done, which follows from taken: count self.taken up in step(), and the run is "
            "done after problem.steps of them"
        )

    @property
    def plan(self) -> Plan:
        """What goes, once the run is over.

        Raises:
            PluginError: before.
        """
        if self.chosen is None:
            left = self.problem.steps - self.taken
            raise PluginError(
                f"the schedule is not over: {left} of {self.problem.steps} steps are left; take them first"
            )
        return self.chosen

    @abc.abstractmethod
    def refresh(self, values: Values) -> None:
        """Take fresh scores, by group; clears `due`."""

    @abc.abstractmethod
    def step(self) -> Floats:
        """One step: returns the new mask, shape (n,)."""

    def told(self) -> dict[str, float]:
        """Figures of the step just taken, for progress bars and pictures."""
        undecided = float(((self.mask > 0) & (self.mask < 1)).mean())
        return {"remaining": self.problem.remaining(self.mask), "undecided": undecided}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on, as numbers, text and arrays."""
        kept = {k: v for k, v in vars(self).items() if k not in ("problem", "options", "chosen")}
        return {**kept, "chosen": None if self.chosen is None else self.chosen.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for k, v in state.items():
            if k != "chosen":
                setattr(self, k, v.copy() if isinstance(v, np.ndarray) else v)
        self.chosen = None if state["chosen"] is None else Plan.from_json(state["chosen"])


class Scheduler(abc.ABC):
    """When and how far to prune.  Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        at_once: whether all goes in the first step, so that `fxprune.prune` cuts before it trains.
    """

    at_once: ClassVar[bool] = False

    @abc.abstractmethod
    def begin(self, problem: Problem) -> Flow:
        """A new run.

        Raises:
            PluginError: where the options do not fit the problem (too few steps, say).
        """


def begun(scheduler: Scheduler, problem: Problem) -> Flow:
    """A new run that has all that a flow must have.

    Raises:
        PluginError: it has not, or the options do not fit the problem.
    """
    flow: Any = scheduler.begin(problem)
    if not isinstance(flow, Flow):
        raise PluginError(
            f"{type(scheduler).__name__}.begin() returned a {type(flow).__name__}; return an fxprune.Flow"
        )
    if missing := [name for name in ("problem", "taken", "mask", "chosen") if not hasattr(flow, name)]:
        raise PluginError(
            f"a {type(flow).__name__} has no {', '.join(missing)}: call super().__init__(problem) first in its __init__"
        )
    return flow


def scheduler_of(given: str | Scheduler | type[Scheduler]) -> Scheduler:
    """A scheduler by its name, as a class, or as it is.

    Raises:
        PluginError: it is something else.
    """
    if isinstance(given, str):
        given = cast("type[Scheduler]", registry.get("schedulers", given))
    if inspect.isclass(given):
        given = given()
    if not isinstance(given, Scheduler):
        raise PluginError(f"scheduler is a {type(given).__name__}; pass a name, or an fxprune.Scheduler")
    return given
