"""`Plan`: which channels of which group stay.  Pure data: it prints, compares, goes to JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import nn

from fxprune.arguments import COUNT, INDICES, MAPPING, MODULE, NOT_NEGATIVE, TEXT, Kind, number, require, takes
from fxprune.errors import BudgetError, PlanError, printable
from fxprune.graph.channels import FOLLOWING, ChannelGraph
from fxprune.graph.explain import meant
from fxprune.graph.labels import Ints
from fxprune.notebook import shown
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import COUNTED, UNITS, Costs, dense_cost
from fxprune.planning.costs.macs import uncounted
from fxprune.planning.indices import Channels, named_channels, zero_channels
from fxprune.planning.names import Names
from fxprune.planning.norms import NormChange, norm_changes
from fxprune.planning.plan_diff import PlanDiff
from fxprune.planning.plan_json import plan_data, plan_fields, text_of
from fxprune.planning.removals import Bounds, Removals, clusters, sequences
from fxprune.planning.search import Cut

Plan_ = Kind("an fxprune.Plan", lambda v: isinstance(v, Plan))
EDITABLE = Kind("an fxprune.Plan or Draft", lambda v: isinstance(v, (Plan, Draft)), PlanError)
_UNIT = {k: f" {UNITS[k]}" for k in ("memory", "latency")}  # the others are what their names say
OUT = 1e9  # score of a channel that stays: no removal that takes it has a mean below zero


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
        made_by: group name -> the names of the tensors that make its channels, for `keep`.
        uncounted: ops that read parameters and are not in `costs["macs"]`, because nobody has told what they compute.
        config: with `shape="stock"`, entries of the constructor's config -> what they were and what they are.
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
    uncounted: tuple[str, ...] = ()
    made_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    config: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def cost(self, of: str | None = None) -> float:
        """What is left of a measure ("params", "macs", ...; None: that of the budget).

        Raises:
            BudgetError: where the plan does not count it.
        """
        require("Plan.cost", "of", of, TEXT.or_none, BudgetError)
        if (of := of or self.of) not in self.costs:
            raise BudgetError(f"this plan does not count {of!r}; it counts {', '.join(self.costs) or 'nothing'}")
        return self.costs[of][1]

    @property
    def speedup(self) -> float | None:
        """How many times as fast the result should be: by its latency where that was asked for, else at most, by its
        multiply-accumulates; None where neither is counted."""
        before, after = self.costs.get("latency") or self.costs.get("macs") or (0.0, 0.0)
        return before / after if before and after else None

    @property
    def speed(self) -> str:
        """The same in words, with where it comes from; "" where nothing is known."""
        if self.speedup is None:
            return ""
        if "latency" in self.costs:
            return f"speed: {self.speedup:.2f}x, by measured times"
        return f"speed: at most about {self.speedup:.2f}x, by its multiply-accumulates (not timed)"

    @property
    def norm_groups(self) -> dict[str, int]:
        """Node of a group norm -> its new number of groups."""
        return {node: change.after for node, change in self.norms.items()}

    @property
    def regrouped(self) -> tuple[str, ...]:
        """Group norms whose groups did not keep their own members."""
        return tuple(n for n, c in self.norms.items() if not c.exact)

    @takes(graph=ChannelGraph, error=PlanError)
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
        return Draft.of(self).keep(name, channels)

    def __or__(self, other: Plan | Draft) -> Draft:
        """A draft of the channels that one of the two removes; `.on(graph)` makes it a plan."""
        return Draft.of(self) | other

    def __and__(self, other: Plan | Draft) -> Draft:
        """A draft of the channels that both remove; `.on(graph)` makes it a plan."""
        return Draft.of(self) & other

    @takes(other=Plan_, error=PlanError)
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

    @takes(other=Plan_, error=PlanError)
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
        return text_of(plan_data(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from JSON text.

        Raises:
            PlanError: where the text is not a plan, or of a newer format.
        """
        require("Plan.from_json", "text", text, TEXT, PlanError)
        return cls(**plan_fields(text))

    @classmethod
    @takes(graph=ChannelGraph, removed=MAPPING, error=PlanError)
    def removing(
        cls,
        graph: ChannelGraph,
        removed: Mapping[str, Iterable[int]],
        *,
        exact_norms: bool = False,
        nearest: bool = False,
    ) -> Plan:
        """The plan that removes exactly these channels, and whatever is coupled to them.

        Args:
            graph: from `fxprune.trace`.
            removed: name -> indices: of a tensor or a layer, the output channels as torch numbers them; of a group, its
                channels (heads, where whole heads go).
            exact_norms: refuse what a group norm can follow only with other groups.
            nearest: where constraints do not let all of them go together, as many as they do, rather than an error.

        Raises:
            PlanError: a name or an index means nothing, or is held; or, but for `nearest`, a constraint forbids it.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> x = torch.ones(1, 8)
        >>> plan = fxprune.Plan.removing(fxprune.trace(net, x), {"0": [1, 2, 31]})
        >>> fxprune.apply(net, plan, example_inputs=x)[0].out_features
        29
        """
        return _exactly(graph, named_channels(graph, removed), exact_norms, nearest, "by name")

    @classmethod
    @takes(graph=ChannelGraph, model=MODULE, tolerance=NOT_NEGATIVE, error=PlanError)
    def zeros(
        cls, graph: ChannelGraph, model: nn.Module, *, tolerance: float = 0.0, weights_only: bool = False
    ) -> Plan:
        """The plan that removes what is zero already, as group lasso or another tool's masks leave it.

        A channel is zero where all parameters that make it are (weights, biases, norms), or all weights that read it.
        Nothing is lost with it, but for a group or layer norm over it: the zeros no longer count in its statistics.

        Args:
            graph: of `model`, from `fxprune.trace`.
            tolerance: the largest absolute value that counts as zero.
            weights_only: leave biases and norms out of account: what these add to a channel is lost with it.

        Raises:
            PlanError: no channel is zero; or the graph is of another model.
        """
        return _exactly(graph, zero_channels(graph, model, tolerance, weights_only), False, True, "zeros")

    @classmethod
    def of_cut(cls, costs: Costs, cut: Cut, ratio: float, of: str, criterion: str) -> Plan:
        """The plan that takes the channels of a cut."""
        graph, nothing = costs.graph, np.zeros(len(costs.graph.groups))
        gone = {g: tuple(sorted(cut.channel[cut.group == g].tolist())) for g in np.flatnonzero(cut.removed).tolist()}
        made = cls(
            model=graph.model_class,
            fingerprint=graph.fingerprint,
            removed={graph.groups[g].name: channels for g, channels in gone.items()},
            sizes={g.name: len(g) for g in graph.groups},
            ratio=ratio,
            of=of,
            achieved=cut.share,
            costs={k: (costs.of(k, nothing), costs.of(k, cut.removed)) for k in dict.fromkeys((*COUNTED, of))},
            criterion=criterion,
            traced=(graph.prefer[0] if graph.prefer else "heads", *graph.revisions),
            made_by=graph.makers,
            uncounted=uncounted(graph),
        )
        return replace(made, norms=norm_changes(graph, made.kept(graph)))

    def __repr__(self) -> str:
        lines = [
            f"Plan for {self.model}: {self.achieved:.1%} of {self.of} go (asked {self.ratio:.1%}, {self.criterion})"
        ]
        lines += [
            f"  {k:9s} {a:,.0f} -> {b:,.0f}{_UNIT.get(k, '')} (-{1 - b / a if a else 0:.1%})"
            for k, (a, b) in self.costs.items()
        ]
        lines += [f"  {self.speed}"] if self.speed else []
        if self.uncounted:
            lines.append(f"  not counted in macs: {', '.join(self.uncounted)}")
        lines += [f"  {entry} = {new:g} (was {old:g})" for entry, (old, new) in self.config.items()]
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
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        rows = [(k, f"{a:,.0f}", f"{b:,.0f}", f"{b / a - 1 if a else 0:+.1%}") for k, (a, b) in self.costs.items()]
        cut = [(n, self.sizes[n], self.sizes[n] - len(gone), "") for n, gone in self.removed.items() if gone]
        return shown(repr(self).splitlines()[0], ["", "dense", "pruned", "change"], [*rows, *cut])


@dataclass(frozen=True)
class Draft:
    """Channels that may go: a plan, or several, edited by hand.

        draft = (plan | other).keep("mid_block.*")     plain data, nothing is checked yet
        plan = draft.on(graph)                         a plan again: as many of them as every constraint lets go

    A draft is no plan, so an edit that breaks a group norm or a lockstep can never reach a model.

    Attributes:
        plans: the plans that it was made from; they are of one graph.
        votes: group -> how many of the plans let each channel go; 0: it stays.
    """

    plans: tuple[Plan, ...]
    votes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, plan: Plan | Draft) -> Draft:
        """A plan as a draft."""
        require("Draft", "other", plan, EDITABLE)
        if isinstance(plan, Draft):
            return plan
        votes = {name: [0] * n for name, n in plan.sizes.items()}
        for name, gone in plan.removed.items():
            for c in gone:
                votes[name][c] = 1
        return cls((plan,), {name: tuple(v) for name, v in votes.items()})

    @takes(name=TEXT, channels=INDICES.or_none, error=PlanError)
    def keep(self, name: str, channels: Iterable[int] | None = None) -> Draft:
        """Without the channels of some groups, which stay.

        Args:
            name: a tensor or module, whose channels stay whatever group they are of; a group; or a glob of these.
            channels: which channels stay for certain, of the groups that are called so; None: all.

        Raises:
            PlanError: nothing that makes channels is called so, or a group has no such channel.
        """
        names = Names({g: self.plans[0].made_by.get(g, ()) for g in self.votes})
        found = names.groups(name)
        if channels is not None:
            channels, found = tuple(channels), names.leading(name) or found
        if not found:
            hint = names.closest(name) or ", and nothing that makes channels"
            raise PlanError(f"no group is called {name!r}{hint}")
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

    @takes(
        graph=ChannelGraph, round_to=COUNT, max_ratio=number("a number in (0, 1]", 0, 1, open_low=True), error=PlanError
    )
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
        parts = sequences(graph, scores, Bounds(max_ratio, round_to, min_width), allowed, regroup)
        taken = [seq.first(int((np.maximum.accumulate(seq.score) < 0).sum())) for seq in parts]
        planned = [(g, c) for g, group in enumerate(graph.groups) if not allowed[g] for c in self.channels(group.name)]
        made = self._plan(graph, taken, np.array(planned, np.int64).reshape(-1, 2))
        return with_blocks(whole, made, self.plans[0].blocks)

    @takes(group=TEXT, error=PlanError)
    def channels(self, group: str) -> tuple[int, ...]:
        """The channels of a group that may go."""
        if group not in self.votes:
            raise PlanError(f"no group is called {group!r}{meant(group, self.votes)}")
        return tuple(c for c, n in enumerate(self.votes[group]) if n)

    def _is_planned(self, graph: ChannelGraph, members: Sequence[int]) -> bool:
        """Whether the draft says of some groups just what one of its plans says."""
        names = [graph.groups[g].name for g in members]
        return any(all(plan.removed.get(n, ()) == self.channels(n) for n in names) for plan in self.plans)

    def _plan(self, graph: ChannelGraph, taken: Sequence[Removals], whole: Ints) -> Plan:
        group = np.concatenate([whole[:, 0], *(seq.group for seq in taken)])
        channel = np.concatenate([whole[:, 1], *(seq.channel for seq in taken)])
        removed = np.bincount(group, minlength=len(graph.groups)).astype(float)
        cost, asked = CostModel(graph), self.plans[0]
        share = 1 - cost.of(asked.of, removed) / dense_cost(cost, asked.of)
        criteria = " | ".join(dict.fromkeys(plan.criterion for plan in self.plans))
        return Plan.of_cut(cost, Cut(group, channel, removed, share), asked.ratio, asked.of, criteria)

    def __repr__(self) -> str:
        cut = [(g, sum(map(bool, v)), len(v)) for g, v in self.votes.items() if any(v)]
        lines = [
            f"Draft for {self.plans[0].model}: up to {sum(k for _, k, _ in cut)} channels go; .on(graph) settles it"
        ]
        lines += [f"  {g}: {k} of {n}" for g, k, n in cut[:16]]
        return printable("\n".join(lines + [f"  ... and {len(cut) - 16} more groups"] * (len(cut) > 16)))


def followed(graph: ChannelGraph, plan: Plan) -> ChannelGraph:
    """The graph that a plan was made for, from the graph of a fresh trace: the plan's own steps taken.

    Raises:
        PlanError: it was made for another one.
    """
    if plan.fingerprint == graph.fingerprint or graph.revisions:
        return graph.following() if FOLLOWING in plan.traced and not graph.follows else graph
    if graph.prefer and plan.traced[:1] != graph.prefer[:1]:
        raise PlanError(
            f"the plan was made with attention={plan.traced[0]!r}, the graph with {graph.prefer[0]!r}; trace with "
            f"fxprune.trace(model, inputs, attention={plan.traced[0]!r})"
        )
    return graph.revised(plan.traced[1:])


# ---- exactly these -------------------------------------------------------------------------------------------------


def _exactly(graph: ChannelGraph, asked: Channels, exact_norms: bool, nearest: bool, criterion: str) -> Plan:
    """The plan that removes these channels of groups: with every norm as it is, else with norms regrouped."""
    none = np.zeros(0, np.int64)
    empty = Plan.of_cut(CostModel(graph), Cut(none, none, np.zeros(len(graph.groups)), 0.0), 0.0, "params", criterion)
    norms = {norm.node: NormChange(norm.groups, norm.groups, exact=False) for norm in graph.facts.norm_groups}
    votes = {g.name: tuple(int(c in asked.get(g.name, ())) for c in range(len(g))) for g in graph.groups}
    tries = (empty, *([replace(empty, norms=norms)] if norms and not exact_norms else []))
    made = [Draft((base,), votes).on(graph) for base in tries]
    best = max(made, key=lambda plan: sum(map(len, plan.removed.values())))
    best = replace(best, ratio=best.achieved)
    if nearest or {g: c for g, c in best.removed.items() if c} == {g: c for g, c in asked.items() if c}:
        return best
    group = next(g for g, channels in asked.items() if best.removed.get(g, ()) != channels)
    left = sorted(set(asked[group]) - set(best.removed.get(group, ())))
    raise PlanError(
        f"these channels cannot go together: of {group!r} {len(asked[group])} of {len(graph.group(group))} were "
        f"named, and constraints (a channel that stays, groups of a norm or a convolution) keep {left[:6]}; name as "
        "many in each group of these, or take what can go with nearest=True"
    )


# ---- blocks ---------------------------------------------------------------------------------------------------------


def with_blocks(graph: ChannelGraph, left: Plan, names: tuple[str, ...]) -> Plan:
    """A plan of what is left of a graph without some blocks, as a plan of the graph."""
    if not names:
        return left
    dense = CostModel(graph)
    costs = {k: (dense_cost(dense, k), after) for k, (_, after) in left.costs.items()}
    before, after = costs[left.of]
    return replace(left, blocks=names, costs=costs, achieved=1 - after / before)
