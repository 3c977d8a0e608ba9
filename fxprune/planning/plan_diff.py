"""`PlanDiff`: what two plans of one graph do differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxprune.errors import printable


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
        return printable("\n".join(lines + [f"  ... and {len(groups) - 16} more"] * (len(groups) > 16)))
