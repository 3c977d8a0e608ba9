"""Plans of a search that take out whole blocks, too: how many go is one more share.

    n            blocks that go: the first n of those with the lowest saliency for what they cost
    shares       of the parts of what is left, which keep their names (see `fxprune.studies.candidates`)

Every number of blocks has a space of its own, whose budgets are those of the whole network; with blocks enough it has
no channel to give.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.blocks import outermost, ranked_blocks, scores_on, shares_of
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost
from fxprune.planning.limits import Limits
from fxprune.planning.plan import Plan, with_blocks
from fxprune.planning.ranking import touched
from fxprune.scoring.score import Scores
from fxprune.studies.candidates import Space, space_of

BLOCKS = "blocks"


@dataclass(frozen=True)
class Deep:
    """All plans that keep to some budgets, with any number of blocks taken out.

    Attributes:
        whole: the plans that take out none.
        order: the blocks that may go, in the order in which they do; no more than the budgets ask for.
        least: how many of them must, since channels alone would not do.
    """

    whole: Space
    scores: Scores
    limits: Limits
    order: tuple[str, ...]
    least: int = 0
    _spaces: dict[tuple[str, ...], Space] = field(default_factory=dict, repr=False)

    @property
    def graph(self) -> ChannelGraph:
        """Whose plans they are."""
        return self.whole.graph

    @property
    def costs(self) -> CostModel:
        """Of the whole graph."""
        return self.whole.costs

    @property
    def stay(self) -> Mapping[str, float]:
        """Measure -> the share of its cost that may stay."""
        return self.whole.stay

    @property
    def most(self) -> dict[str, float]:
        """As `Space.most`, with the share of all blocks that may go."""
        return {**self.whole.most, BLOCKS: len(self.order) / len(self.graph.blocks)}

    def shares(self, plan: Plan) -> dict[str, float]:
        """What a plan takes of every part, and of the blocks."""
        most, left = self.most, self.without(plan.blocks)
        out = {**dict.fromkeys(most, 0.0), BLOCKS: len(plan.blocks) / len(self.graph.blocks)}
        homes = self._homes(left)
        out |= {homes[name]: share for name, share in left.shares(plan).items() if name in homes}
        return {name: min(most[name], share) for name, share in out.items()}

    def plan(self, shares: Mapping[str, float]) -> Plan:
        """As `Space.plan`, of what is left without as many blocks as their share says.

        Raises:
            BudgetError: the limits do not allow any, or by the clock none was found.
        """
        names = self.first(max(self.least, round(shares[BLOCKS] * len(self.graph.blocks))))
        left = self.without(names)
        homes = self._homes(left)
        asked = {n: min(most, shares[homes[n]]) if n in homes else 0.0 for n, most in left.most.items()}
        made = left.plan(asked)
        return with_blocks(self.graph, replace(made, ratio=1 - self.stay[made.of]), names)

    def excess(self, plan: Plan) -> float:
        """As `Space.excess`."""
        return self.whole.excess(plan)

    def timed(self, plan: Plan) -> Plan:
        """As `Space.timed`."""
        return with_blocks(self.graph, self.without(plan.blocks).timed(plan), plan.blocks)

    def first(self, count: int) -> tuple[str, ...]:
        """Names of so many blocks, but for those that go with another one of them."""
        return outermost(self.graph, frozenset(self.order[:count]))

    def suffice(self, count: int) -> bool:
        """Whether so many blocks alone do what all budgets ask for."""
        left = CostModel(self.graph.without(self.first(count)))
        return all(dense_cost(left, m) <= s * dense_cost(self.costs, m) for m, s in self.stay.items())

    def without(self, names: tuple[str, ...]) -> Space:
        """The plans of what is left without some blocks.

        Raises:
            BudgetError: channels do not do what these leave to be done.
        """
        if not names:
            return self.whole
        if names not in self._spaces:
            left = self.graph.without(names)
            costs, scores = CostModel(left), replace(self.scores, values=scores_on(left, self.scores.values))
            share = {m: s * dense_cost(self.costs, m) / dense_cost(costs, m) for m, s in self.stay.items()}
            self._spaces[names] = space_of(left, scores, {m: min(1.0, s) for m, s in share.items()}, self.limits)
        return self._spaces[names]

    def _homes(self, left: Space) -> dict[str, str]:
        """Name of a part of what is left -> that of the part of the whole which holds its channels."""
        home = {c: name for name, every in _components(self.whole).items() for c in every}
        found = {name: next((home[c] for c in every if c in home), None) for name, every in _components(left).items()}
        return {name: there for name, there in found.items() if there is not None}


def _components(space: Space) -> dict[str, list[int]]:
    """Name of a part -> the components of its channels, which blocks that go do not number anew."""
    groups = space.graph.groups
    return {
        name: [int(c) for g in touched(seq) for c in groups[g].components]
        for name, seq in zip(space.most, space.parts, strict=True)
    }


def deep(space: Space, scores: Scores, limits: Limits) -> Deep:
    """A space, with blocks that go: in order, until the budgets hold by these alone.

    Args:
        space: of channels, which need not reach the budgets.

    Raises:
        BudgetError: there is no block that can go, or the budgets are out of reach with all of them.
        CriterionError: a block has no finite score.
    """
    graph, of = space.graph, next(iter(space.stay))
    every = ranked_blocks(graph, scores.blocks, shares_of(graph, of), limits.ignore)
    if not every:
        raise BudgetError(
            f"this {graph.model_class} has no block that can go, see fxprune.trace(model).blocks: leave out "
            'granularity="both"'
        )
    made = Deep(space, scores, limits, tuple(every))
    enough = bisect_left(range(len(every)), True, key=made.suffice)
    for least in range(enough + 1):
        try:
            made.without(made.first(least)).require()
        except BudgetError as e:
            short = e
        else:
            return replace(made, order=made.order[:enough], least=least)
    raise short
