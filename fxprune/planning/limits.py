"""What a plan must keep to besides its budget, as the caller said it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fxprune.graph.channels import ChannelGraph
from fxprune.errors import BudgetError
from fxprune.planning.removals import Limits, Moves
from fxprune.planning.ranking import SCOPES, Curves, lost, touched
from fxprune.planning.selectors import matches, nearest

MOST = 0.9  # share of its channels that a group may lose, unless asked otherwise


@dataclass(frozen=True)
class Constraints:
    """The options of `fxprune.plan` other than the budget; see there.

    Raises:
        BudgetError: where one of them is out of range.
    """

    ratios: Mapping[str, float] | Curves | None = None
    ignore: tuple[Any, ...] = ()
    round_to: int = 1
    min_width: int = 1
    max_ratio: float | None = None
    exact_norms: bool = False
    scope: str = "global"

    def __post_init__(self) -> None:
        if not 0 < (1 if self.max_ratio is None else self.max_ratio) <= 1:
            raise BudgetError(f"max_ratio={self.max_ratio} must be in (0, 1]")
        if self.round_to < 1 or self.min_width < 1:
            raise BudgetError(f"round_to={self.round_to} and min_width={self.min_width} must be at least 1")
        if self.scope not in SCOPES:
            raise BudgetError(f"scope={self.scope!r} is unknown; choose {', '.join(SCOPES[:-1])} or {SCOPES[-1]}")
        for name, share in self.stated.items():
            if not 0 <= share < 1:
                raise BudgetError(
                    f"ratios={{{name!r}: {share}}} is outside [0, 1): it is the share of channels to remove"
                )

    @property
    def stated(self) -> Mapping[str, float]:
        """Shares that are given by name."""
        return self.ratios if isinstance(self.ratios, Mapping) else {}

    @property
    def table(self) -> Curves | None:
        """A table that ranks the groups."""
        return None if isinstance(self.ratios, Mapping) else self.ratios

    @property
    def caps(self) -> tuple[float, ...]:
        """Values of `max_ratio` to try, in order."""
        return (MOST, 1.0) if self.max_ratio is None else (self.max_ratio,)

    def shares(self, graph: ChannelGraph) -> dict[int, float]:
        """Index of a group -> the share of it that is given by name.

        Raises:
            BudgetError: where a name matches nothing in the model.
        """
        places = {place for found in graph.within.values() for place in found}
        for pattern in self.stated:
            known = any(matches(g.name, pattern) for g in graph.groups)
            if not known and not any(fnmatch.fnmatchcase(place, pattern) for place in places):
                hint = nearest(pattern, (g.name for g in graph.groups))
                raise BudgetError(f"ratios= names {pattern!r}, which is no group, tensor or module{hint}")
        first = [next((p for p in self.stated if matches(g.name, p)), None) for g in graph.groups]
        return {g: self.stated[p] for g, p in enumerate(first) if p is not None}

    def limits(self, cap: float, shares: Mapping[int, float]) -> Limits:
        """How far groups may shrink, for one of `caps`."""
        return Limits(cap, self.round_to, self.min_width, frozenset(shares))

    def loosened(self) -> Iterator[tuple[str, Constraints]]:
        """Every limit that is set, as one would write it, and the constraints without it."""
        for name, loose in (("max_ratio", 1.0), ("min_width", 1), ("round_to", 1), ("exact_norms", False)):
            if (now := getattr(self, name)) not in (None, loose):
                yield f"{name}={now}", replace(self, **{name: loose})  # type: ignore[arg-type]
        if self.ignore:
            yield f"ignore={[getattr(i, '__name__', i) for i in self.ignore]}", replace(self, ignore=())
        if self.ratios is not None:
            what = f"ratios of {len(self.stated)} names" if self.stated else "the table in ratios"
            yield what, replace(self, ratios=None)


def split(graph: ChannelGraph, parts: Sequence[Moves], shares: Mapping[int, float]) -> tuple[list[Moves], list[Moves]]:
    """The moves that shares given by name ask for, as nearly as steps allow, and the parts that are free.

    Groups that move together lose the mean of what is asked of them.
    """
    stated, free = [], []
    for seq in parts:
        asked = [(shares[g], len(graph.groups[g])) for g in touched(seq) if g in shares]
        if not asked:
            free.append(seq)
            continue
        share = np.average([s for s, _ in asked], weights=[n for _, n in asked])
        after = np.concatenate([[0.0], lost(graph, seq)])
        stated.append(seq.first(int(np.abs(after - share).argmin())))
    return [seq for seq in stated if len(seq)], free
