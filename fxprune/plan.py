"""`Plan`: which channels of which group stay.  Pure data: it prints, compares, goes to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.errors import PlanError

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
class Plan:
    """Which channels go, and what that costs.

    Attributes:
        model: class name of the model it was made for.
        fingerprint: of the `ChannelGraph` it was made for; it fits no other.
        removed: group name -> indices of the channels that go, ascending.
        sizes: group name -> number of channels before.
        norms: node of a group norm -> its number of groups before and after.
        ratio, of: the budget asked for; `achieved` the share of `of` that goes.
        cost: measure -> (before, after).
        criterion: what scored the channels.
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
    cost: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    criterion: str = ""
    blocks: tuple[str, ...] = ()

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

    def keep(self, graph: ChannelGraph) -> npt.NDArray[np.bool_]:
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

    def to_json(self) -> str:
        """The plan as JSON text."""
        data = asdict(self)
        data["format"] = FORMAT
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
        data["cost"] = {str(k): (float(v[0]), float(v[1])) for k, v in data["cost"].items()}
        data["blocks"] = _names(data.get("blocks", []))
        return cls(**data)

    def __repr__(self) -> str:
        lines = [
            f"Plan for {self.model}: {self.achieved:.1%} of {self.of} go (asked {self.ratio:.1%}, {self.criterion})"
        ]
        lines += [f"  {k:9s} {a:,.0f} -> {b:,.0f} (-{1 - b / a if a else 0:.1%})" for k, (a, b) in self.cost.items()]
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
