"""`Plan`: which channels of which group stay.  Pure data: it prints, compares, goes to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.errors import BudgetError, PlanError

if TYPE_CHECKING:
    from fxprune.planning.draft import Draft

FORMAT = 1


def _count(value: Any) -> int:
    """A number of channels, or the index of one."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no index or number of channels")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{value!r:.60} is no list of names")
    return tuple(value)


@dataclass(frozen=True)
class NormChange:
    """A group norm's number of groups before and after; `exact` if every group kept its own members."""

    before: int
    after: int
    exact: bool


@dataclass(frozen=True)
class PlanDiff:
    """Channels that only the first or only the second of two plans removes, by group, and what both leave.

    Attributes:
        costs: measure -> (what the first leaves, what the second leaves).
    """

    only_first: Mapping[str, tuple[int, ...]]
    only_second: Mapping[str, tuple[int, ...]]
    costs: Mapping[str, tuple[float, float]]

    def __bool__(self) -> bool:
        return bool(self.only_first or self.only_second)

    def __repr__(self) -> str:
        groups = dict.fromkeys([*self.only_first, *self.only_second])
        lines = [f"{len(groups)} groups differ"]
        lines += [f"  {k:9s} {a:,.0f} | {b:,.0f} ({b - a:+,.0f})" for k, (a, b) in self.costs.items()]
        for g in list(groups)[:16]:
            lines.append(f"  {g}: {len(self.only_first.get(g, ()))} | {len(self.only_second.get(g, ()))} go here only")
        return "\n".join(lines + [f"  ... and {len(groups) - 16} more"] * (len(groups) > 16))


def _draft(plan: Plan) -> Draft:
    from fxprune.planning.draft import Draft

    return Draft.of(plan)


@dataclass(frozen=True)
class Plan:
    """Which channels go, and what that costs.

    Attributes:
        model: class name of the model it was made for.
        fingerprint: of the `ChannelGraph` it was made for; it fits no other.
        removed: group name -> indices of the channels that go, ascending.
        sizes: group name -> number of channels before.
        norms: node of a group norm -> its number of groups before and after.
        ratio, of: the budget asked for; `achieved` the share of `of` that goes.
        costs: measure -> (before, after).
        criterion: what scored the channels.
        traced: the `attention` that the model was traced with, and the graph's `revisions`.
        blocks: names of the residual branches that go whole; `removed` speaks of what is left without them.
    """

    model: str
    fingerprint: str
    removed: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    norms: Mapping[str, NormChange] = field(default_factory=dict)
    ratio: float = 0.0
    of: str = "params"
    achieved: float = 0.0
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    criterion: str = ""
    traced: tuple[str, ...] = ("heads",)
    blocks: tuple[str, ...] = ()

    def cost(self, of: str | None = None) -> float:
        """What is left of a measure ("params", "macs", ...; None: that of the budget).

        Raises:
            BudgetError: where the plan does not count it.
        """
        if (of := of or self.of) not in self.costs:
            raise BudgetError(f"this plan does not count {of!r}; it counts {', '.join(self.costs) or 'nothing'}")
        return self.costs[of][1]

    @property
    def regrouped(self) -> tuple[str, ...]:
        """Group norms whose groups did not keep their own members."""
        return tuple(n for n, c in self.norms.items() if not c.exact)

    def check(self, graph: ChannelGraph) -> None:
        """Raise `PlanError` unless the plan was made for this graph."""
        if self.fingerprint != graph.fingerprint:
            raise PlanError(
                f"this plan was made for a {self.model} with other tensors or channels ({self.fingerprint}) than this "
                f"{graph.model_class} has ({graph.fingerprint}); make a new one with fxprune.plan(graph, scores)"
            )
        graph = graph.without(self.blocks)
        for name, gone in self.removed.items():
            n = len(graph.group(name))
            if any(not 0 <= c < n for c in gone) or len(set(gone)) != len(gone) or (n and len(gone) >= n):
                raise PlanError(f"the plan removes channels {gone[:4]}... of group {name!r}, which has {n} channels")

    def kept(self, graph: ChannelGraph) -> npt.NDArray[np.bool_]:
        """Which components of the graph stay.

        Raises:
            PlanError: where the plan does not fit the graph.
        """
        self.check(graph)
        graph = graph.without(self.blocks)
        keep = graph.keep_all()
        for name, gone in self.removed.items():
            keep[graph.group(name).components[list(gone)]] = False
        return keep

    # ---- edits ----------------------------------------------------------------------------------------------------

    def keep(self, name: str, channels: Iterable[int] | None = None) -> Draft:
        """A draft without some channels: see `Draft.keep`; `.on(graph)` makes it a plan."""
        return _draft(self).keep(name, channels)

    def __or__(self, other: Plan | Draft) -> Draft:
        """A draft of the channels that one of the two removes; `.on(graph)` makes it a plan."""
        return _draft(self) | other

    def __and__(self, other: Plan | Draft) -> Draft:
        """A draft of the channels that both remove; `.on(graph)` makes it a plan."""
        return _draft(self) & other

    def diff(self, other: Plan) -> PlanDiff:
        """What another plan of the same graph does differently.

        Raises:
            PlanError: it is of another graph.
        """
        self.same_graph(other)
        pairs = {g: (set(self.removed.get(g, ())), set(other.removed.get(g, ()))) for g in self.sizes}
        return PlanDiff(
            only_first={g: tuple(sorted(a - b)) for g, (a, b) in pairs.items() if a - b},
            only_second={g: tuple(sorted(b - a)) for g, (a, b) in pairs.items() if b - a},
            costs={k: (self.costs[k][1], other.costs[k][1]) for k in self.costs if k in other.costs},
        )

    def same_graph(self, other: Plan) -> None:
        """Raise `PlanError` unless both plans are of one graph."""
        if self.fingerprint != other.fingerprint:
            raise PlanError(
                f"the plans are of different graphs, of a {self.model} ({self.fingerprint}) and a {other.model} "
                f"({other.fingerprint}); make both with fxprune.plan(graph, scores) on one graph"
            )
        if self.blocks != other.blocks:
            odd = min(set(self.blocks) ^ set(other.blocks))
            raise PlanError(f"only one of the plans takes out block {odd!r}; compare plans that take out the same ones")

    def to_json(self) -> str:
        """The plan as JSON text."""
        data = asdict(self)
        data["cost"], data["format"] = data.pop("costs"), FORMAT
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from JSON text.

        Raises:
            PlanError: where the text is not a plan, or of a newer format.
        """
        try:
            return cls._from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise PlanError(f"not a plan: {type(e).__name__}: {e}; write one with plan.to_json()") from e

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> Plan:
        if int(data.pop("format")) > FORMAT:
            raise PlanError("the plan is of a newer format; update fxprune")
        data["sizes"] = {str(k): _count(v) for k, v in data["sizes"].items()}
        data["removed"] = {str(k): tuple(_count(c) for c in v) for k, v in data["removed"].items()}
        if unknown := set(data["removed"]) - set(data["sizes"]):
            raise ValueError(f"it removes channels of {min(unknown)!r}, whose size it does not give")
        data["ratio"], data["achieved"] = float(data["ratio"]), float(data["achieved"])
        for key in ("model", "fingerprint", "of", "criterion"):
            if not isinstance(data[key], str):
                raise TypeError(f"{key} is a {type(data[key]).__name__}, not text")
        data["norms"] = {str(k): NormChange(**v) for k, v in data["norms"].items()}
        data["costs"] = {str(k): (float(v[0]), float(v[1])) for k, v in data.pop("cost").items()}
        data["traced"] = tuple(str(step) for step in data.get("traced", ("heads",)))
        data["blocks"] = _names(data.get("blocks", []))
        return cls(**data)

    def __repr__(self) -> str:
        lines = [
            f"Plan for {self.model}: {self.achieved:.1%} of {self.of} go (asked {self.ratio:.1%}, {self.criterion})"
        ]
        lines += [f"  {k:9s} {a:,.0f} -> {b:,.0f} (-{1 - b / a if a else 0:.1%})" for k, (a, b) in self.costs.items()]
        if self.blocks:
            more = f", and {len(self.blocks) - 8} more" if len(self.blocks) > 8 else ""
            lines.append(f"  blocks: {', '.join(self.blocks[:8])}{more}")
        cut = [(n, len(c)) for n, c in self.removed.items() if c]
        lines += [f"  {n}: {self.sizes[n]} -> {self.sizes[n] - k}" for n, k in cut[:16]]
        if len(cut) > 16:
            lines.append(f"  ... and {len(cut) - 16} more groups")
        if self.regrouped:
            lines.append(
                f"  regrouped norms: {', '.join(self.regrouped[:6])}{' ...' if len(self.regrouped) > 6 else ''}"
            )
        return "\n".join(lines)
