"""`Limits`: what a plan must keep to besides its budget, as the caller said it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from fxprune.arguments import require_fields
from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.names import Names
from fxprune.planning.ranking import SCOPES, Curves, lost, touched
from fxprune.planning.removals import Bounds, Removals
from fxprune.planning.selectors import Ignore, as_items

MOST = 0.9  # share of its channels that a group may lose, unless asked otherwise


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to besides its budget.

    Attributes:
        ratios: name or glob of tensors, modules or groups -> share of the channels that go, of all groups whose
            channels these make; or a table of `fxprune.sensitivity`.
        ignore: what stays as it is: names or globs of tensors, modules or groups, and module types.
        round_to: widths are kept multiples of this where constraints let them; "auto": what suits the device.
        min_width: channels that every group keeps, or all of them where it has fewer.
        max_ratio: largest share of its channels that one group may lose; None: 0.9, or all but one channel where the
            budget cannot be reached otherwise.
        exact_norms: never regroup a group norm, and keep channels over which a mean, a maximum and the like is taken.
        scope: "knapsack", "global", "local" or "isomorphic"; None: what suits the scores.  All of it: `fxprune.plan`.
        shape: "free", a width for every layer; "stock", what the class's own constructor can make; or that constructor
            with what it was given, a `functools.partial`.  See `fxprune.prune`.
        legal_for: widths of linear layers that a quantiser takes afterwards: "int8", "int4-g32", "int4-g128", "nf4",
            "fp8", "nvfp4", "2:4" (see `fxprune.planning.legal`), where constraints let them.
        nearest: with a stock shape, take the nearest that there is, however far from the budget.

    Raises:
        BudgetError: one of them is out of range.
        InputsError: `ignore` holds something else than names, types and callables.

    >>> Limits(round_to=8, ignore="conv_in").caps
    (0.9, 1.0)
    """

    ratios: Mapping[str, float] | Curves | None = None
    ignore: Ignore = ()
    round_to: int | str = 1
    min_width: int = 1
    max_ratio: float | None = None
    exact_norms: bool = False
    scope: str | None = None
    shape: str | Callable[..., Any] = "free"
    nearest: bool = False
    legal_for: str | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        as_items(self.ignore)
        multiple(self.round_to)
        if not 0 < (1 if self.max_ratio is None else self.max_ratio) <= 1:
            raise BudgetError(f"max_ratio={self.max_ratio} must be in (0, 1]")
        if self.min_width < 1:
            raise BudgetError(f"min_width={self.min_width} must be at least 1")
        if self.legal_for is not None and self.shape != "free":
            raise BudgetError(f"legal_for={self.legal_for!r} is for shape='free'; with a stock shape pass round_to=")
        if self.scope not in (None, *SCOPES):
            raise BudgetError(f"scope={self.scope!r} is unknown; choose {', '.join(SCOPES[:-1])} or {SCOPES[-1]}")
        for name, share in self.stated.items():
            if not _is_share(share):
                raise BudgetError(
                    f"ratios={{{name!r}: {share}}} is outside [0, 1): it is the share of channels to remove"
                )

    @property
    def multiple(self) -> int:
        """The number that widths are multiples of; 1 for "auto", which is settled later."""
        return multiple(self.round_to)

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
        """Index of a group -> the share of it that is given by name."""
        first = Names(graph.makers).first(self.stated)
        return {i: self.stated[first[g.name]] for i, g in enumerate(graph.groups) if g.name in first}

    def bounds(self, cap: float, shares: Mapping[int, float]) -> Bounds:
        """How far groups may shrink, for one of `caps`."""
        return Bounds(cap, self.multiple, self.min_width, frozenset(shares))

    def loosened(self) -> Iterator[tuple[str, Limits]]:
        """Every limit that is set, as one would write it, and the limits without it."""
        for name, loose in (("max_ratio", 1.0), ("min_width", 1), ("round_to", 1), ("exact_norms", False)):
            if (now := getattr(self, name)) not in (None, loose):
                yield f"{name}={now}", replace(self, **{name: loose})  # type: ignore[arg-type]
        if self.ignore:
            yield f"ignore={[getattr(i, '__name__', i) for i in as_items(self.ignore)]}", replace(self, ignore=())
        if self.ratios is not None:
            what = f"ratios of {len(self.stated)} names" if self.stated else "the table in ratios"
            yield what, replace(self, ratios=None)


def stated_parts(
    graph: ChannelGraph, families: Sequence[Sequence[Removals]], shares: Mapping[int, float]
) -> list[Removals]:
    """The removals that shares given by name ask for, as nearly as the steps of any family allow; the first of equals.

    Groups that move together lose the mean of what is asked of them.
    """
    best: dict[tuple[int, ...], tuple[float, Removals]] = {}
    for seq in (seq for parts in families for seq in parts):
        groups = tuple(touched(seq))
        asked = [(shares[g], len(graph.groups[g])) for g in groups if g in shares]
        if not asked:
            continue
        share = np.average([s for s, _ in asked], weights=[n for _, n in asked])
        off = np.abs(np.concatenate([[0.0], lost(graph, seq)]) - share)
        if groups not in best or off.min() < best[groups][0] - 1e-9:
            best[groups] = float(off.min()), seq.first(int(off.argmin()))
    return [seq for _, seq in best.values() if len(seq)]


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) < 1


def multiple(round_to: int | str) -> int:
    """The number that `round_to` is; 1 for "auto", which is settled later.

    Raises:
        BudgetError: for anything else.
    """
    if round_to == "auto":
        return 1
    if not isinstance(round_to, int) or round_to < 1:
        raise BudgetError(f'round_to={round_to!r} must be at least 1, or "auto"')
    if round_to >= 2**31:
        raise BudgetError("round_to is larger than any width; pass a small number, such as 8")
    return round_to


NONE = Limits()
