"""What a name says of groups of channels, in `ratios=` and `Plan.keep`: all groups whose channels it makes.

    a tensor, a module     the groups whose channels one of its tensors makes, whatever tensor they are called after
    a group                that group
    a glob                 of these

A layer reads the channels of others, too; of these its name does not speak.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.explain import meant
from fxprune.planning.selectors import ignored


@dataclass(frozen=True)
class Names:
    """The names of some groups.

    Attributes:
        made_by: group -> the names of the tensors that make its channels; that which it is called after may be missing.
    """

    made_by: Mapping[str, tuple[str, ...]]

    @cached_property
    def called(self) -> dict[str, set[str]]:
        """Name -> the groups that are called after it."""
        return _inverted({g: (g, *around(g.rpartition(":")[0])) for g in self.made_by})

    @cached_property
    def known(self) -> dict[str, set[str]]:
        """Name -> the groups that it means."""
        made = _inverted({g: [p for t in tensors for p in around(t)] for g, tensors in self.made_by.items()})
        return {n: made.get(n, set()) | self.called.get(n, set()) for n in (*made, *self.called)}

    def groups(self, pattern: str) -> list[str]:
        """The groups that a pattern means, in order; none where it names nothing that makes channels."""
        return self._in(self.known, pattern)

    def closest(self, pattern: str) -> str:
        """A hint for a pattern that means nothing: the nearest groups, then other names."""
        return meant(pattern, self.made_by, [n for n in self.known if n not in self.made_by])

    def leading(self, pattern: str) -> list[str]:
        """The groups that are called after something that a pattern names."""
        return self._in(self.called, pattern)

    def first(self, patterns: Iterable[str]) -> dict[str, str]:
        """Group -> the pattern that counts: the first that it is called after, else the first that means it."""
        out: dict[str, str] = {}
        for means in (self.leading, self.groups):
            for pattern in patterns:
                out = {**dict.fromkeys(means(pattern), pattern), **out}
        return out

    def _in(self, table: Mapping[str, set[str]], pattern: str) -> list[str]:
        found = set(table.get(pattern, ()))
        if not found:
            found = {g for name, groups in table.items() if fnmatch.fnmatchcase(name, pattern) for g in groups}
        return [g for g in self.made_by if g in found]


def around(tensor: str) -> list[str]:
    """A tensor's name and the paths of the modules around it."""
    parts = tensor.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _inverted(names: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for group, found in names.items():
        for name in found:
            out.setdefault(name, set()).add(group)
    return out


def require_shares(graph: ChannelGraph, stated: Mapping[str, float], ignore: Any = ()) -> None:
    """Check that every name in `ratios=` means something, and that what it asks can be done.

    Raises:
        BudgetError: a name is that of nothing; it makes no channels that could go; `ignore` keeps them all; or an
            earlier name asks another share of all of them.
    """
    names, kept = Names(graph.makers), ignored(graph, ignore)
    free = {g.name for g, out in zip(graph.groups, kept, strict=True) if not out}
    places = {place for found in graph.within.values() for place in found}
    first = names.first(stated)
    for pattern, share in stated.items():
        groups = names.groups(pattern)
        if not groups and not any(fnmatch.fnmatchcase(place, pattern) for place in places):
            hint = names.closest(pattern)
            raise BudgetError(f"ratios= names {pattern!r}, which is no group, tensor or module with tensors{hint}")
        if share and not groups:
            raise BudgetError(f"ratios= names {pattern!r}, {_makes_none(graph, pattern)}")
        if share and not free.intersection(groups):
            raise BudgetError(
                f"ratios={{{pattern!r}: {share}}} asks for channels of {groups[0]!r}, which ignore= (or the model's "
                "adapter) keeps; leave it out of one of the two"
            )
        if groups and all(stated[first[g]] != share for g in groups):
            other = first[groups[0]]
            raise BudgetError(
                f"ratios={{{pattern!r}: {share}}} has no effect: its channels are those of {groups[0]!r}, which lose "
                f"{stated[other]} by {other!r}; give both the same share, or leave one out"
            )


def _makes_none(graph: ChannelGraph, pattern: str) -> str:
    """Why what a pattern names makes no channels that could go, and what to name instead."""
    named = [t for t, found in graph.within.items() if any(fnmatch.fnmatchcase(p, pattern) for p in found)]
    read = [g.name for g in graph.groups if any(s.tensor in named for s in g.slices)]
    live = {graph.traced.tensors.get(n.name) for n in graph.traced.graph.nodes if n.op == "placeholder" and n.users}
    used = [t for t in named if t in live]
    if not used:
        return "which the traced forward does not use"
    instead = f"; what it reads are the channels of {read[0]!r}, to be named instead" if read else ""
    return f"which makes no channels that could go (graph.explain({used[0]!r}) says why){instead}"
