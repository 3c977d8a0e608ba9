"""Plans edited by hand: kept groups, unions, intersections, differences.

    draft = (plan | other).keep("mid_block.*")     channels that may go: plain data, nothing is checked yet
    plan = draft.on(graph)                         a plan again: as many of them as every constraint lets go

A draft is no plan, so an edit that breaks a group norm or a lockstep can never reach a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxprune.graph.channels import ChannelGraph
from fxprune.planning.costs.model import CostModel
from fxprune.planning.blocks import with_blocks
from fxprune.errors import PlanError
from fxprune.graph.labels import Ints
from fxprune.planning.removals import Limits, Moves, clusters, sequences
from fxprune.planning.plan import Plan
from fxprune.planning.planner import as_plan
from fxprune.planning.search import Cut
from fxprune.planning.selectors import matches, nearest

OUT = 1e9  # score of a channel that stays: no move that takes it has a mean below zero


@dataclass(frozen=True)
class Draft:
    """Channels that may go.

    Attributes:
        plans: the plans that it was made from; they are of one graph.
        votes: group -> how many of the plans let each channel go; 0: it stays.
    """

    plans: tuple[Plan, ...]
    votes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, plan: Plan | Draft) -> Draft:
        """A plan as a draft."""
        if isinstance(plan, Draft):
            return plan
        votes = {name: [0] * n for name, n in plan.sizes.items()}
        for name, gone in plan.removed.items():
            for c in gone:
                votes[name][c] = 1
        return cls((plan,), {name: tuple(v) for name, v in votes.items()})

    def keep(self, name: str, channels: Iterable[int] | None = None) -> Draft:
        """Without the channels of some groups, which stay.

        Args:
            name: a group, the tensor or module that it is called after, or a glob of these.
            channels: which of a group's channels stay for certain; None: all.

        Raises:
            PlanError: no group is called so, or it has no such channel.
        """
        found = [g for g in self.votes if matches(g, name)]
        if not found:
            raise PlanError(f"no group is called {name!r}{nearest(name, self.votes)}")
        votes = dict(self.votes)
        for g in found:
            stay = set(range(len(votes[g])) if channels is None else channels)
            if beyond := stay - set(range(len(votes[g]))):
                raise PlanError(f"group {g!r} has {len(votes[g])} channels, so no channel {min(beyond)}")
            votes[g] = tuple(0 if c in stay else v for c, v in enumerate(votes[g]))
        return replace(self, votes=votes)

    def __or__(self, other: Plan | Draft) -> Draft:
        """What one of the two lets go."""
        return self._with(other, lambda a, b: a + b)

    def __and__(self, other: Plan | Draft) -> Draft:
        """What both let go."""
        return self._with(other, lambda a, b: a + b if a and b else 0)

    def _with(self, other: Plan | Draft, both: Callable[[int, int], int]) -> Draft:
        other = Draft.of(other)
        self.plans[0].same_graph(other.plans[0])
        votes = {g: tuple(map(both, v, other.votes[g])) for g, v in self.votes.items()}
        return Draft((*self.plans, *other.plans), votes)

    def on(self, graph: ChannelGraph, *, round_to: int = 1, min_width: int = 1, max_ratio: float = 1.0) -> Plan:
        """The plan that lets as many of the draft's channels go as the constraints of the graph allow, and no other.

        What the edits did not touch stays as planned. Elsewhere channels that several plans let go come first, and
        a norm is regrouped only where one of the plans regroups it.

        Args:
            graph: from `fxprune.trace`, of the model or of another checkpoint.
            round_to: as in `fxprune.plan`, for what is not as planned.
            min_width: likewise.
            max_ratio: likewise.

        Raises:
            PlanError: the plans were made for another graph.
        """
        for plan in self.plans:
            plan.check(graph)
        whole, graph = graph, graph.without(self.plans[0].blocks)
        left = [g for members, _ in clusters(graph) if not self._is_planned(graph, members) for g in members]
        scores = {g: np.array([-float(n) if n else OUT for n in v]) for g, v in self.votes.items()}
        regroup = {norm for plan in self.plans for norm in plan.regrouped}
        allowed = [g in left for g in range(len(graph.groups))]
        parts = sequences(graph, scores, Limits(max_ratio, round_to, min_width), allowed, regroup)
        taken = [seq.first(int((np.maximum.accumulate(seq.score) < 0).sum())) for seq in parts]
        planned = [(g, c) for g, group in enumerate(graph.groups) if not allowed[g] for c in self.channels(group.name)]
        made = self._plan(graph, taken, np.array(planned, np.int64).reshape(-1, 2))
        return with_blocks(whole, made, self.plans[0].blocks)

    def channels(self, group: str) -> tuple[int, ...]:
        """The channels of a group that may go."""
        return tuple(c for c, n in enumerate(self.votes[group]) if n)

    def _is_planned(self, graph: ChannelGraph, members: Sequence[int]) -> bool:
        """Whether the draft says of some groups just what one of its plans says."""
        names = [graph.groups[g].name for g in members]
        return any(all(plan.removed.get(n, ()) == self.channels(n) for n in names) for plan in self.plans)

    def _plan(self, graph: ChannelGraph, taken: Sequence[Moves], whole: Ints) -> Plan:
        group = np.concatenate([whole[:, 0], *(seq.group for seq in taken)])
        channel = np.concatenate([whole[:, 1], *(seq.channel for seq in taken)])
        removed = np.bincount(group, minlength=len(graph.groups)).astype(float)
        cost, asked = CostModel(graph), self.plans[0]
        share = 1 - cost.of(asked.of, removed) / cost.of(asked.of, np.zeros(len(graph.groups)))
        criteria = " | ".join(dict.fromkeys(plan.criterion for plan in self.plans))
        return as_plan(graph, cost, Cut(group, channel, removed, share), asked.ratio, asked.of, criteria)

    def __repr__(self) -> str:
        cut = [(g, sum(map(bool, v)), len(v)) for g, v in self.votes.items() if any(v)]
        lines = [
            f"Draft for {self.plans[0].model}: up to {sum(k for _, k, _ in cut)} channels go; .on(graph) settles it"
        ]
        lines += [f"  {g}: {k} of {n}" for g, k, n in cut[:16]]
        return "\n".join(lines + [f"  ... and {len(cut) - 16} more groups"] * (len(cut) > 16))
