"""From scores and a budget to the class's own instance that is nearest to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from fxprune.adapter import Constructor
from fxprune.errors import BudgetError, RewriteError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.counted import dense_cost
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.limits import Limits
from fxprune.planning.ranking import marginal_worth
from fxprune.planning.selectors import ignored
from fxprune.stock.channels import chosen
from fxprune.stock.entries import Changes
from fxprune.stock.instance import Asked, Instance, instance, lost
from fxprune.stock.integers import read_integers
from fxprune.stock.oracle import Oracle, Refusal, Snapshot, named_tensors
from fxprune.stock.search import Search, State
from fxprune.stock.ties import Tie, Ties, find_ties

NEAR = 0.04  # how far from the asked share a result may be, unless `nearest` takes what there is
MOST = 8  # entries whose refusal is told
ODD = 7  # a width that nothing has: whether an entry sets anything at all
TRIES = 12  # configs that are built and proven, the nearest first


@dataclass(frozen=True)
class Narrowing:
    """What a model's constructor allows: its ties, found once for one graph and one set of scores.

    Attributes:
        rank: what is lost with each channel, by group name; `asked.scores` choose within a group.
    """

    net: nn.Module
    oracle: Oracle
    asked: Asked
    limits: Limits
    ties: Ties
    rank: Mapping[str, Floats] = field(repr=False)

    def search(self, cap: float) -> Search:
        """The search with groups that lose at most a share of their channels."""
        oracle, costs = self.oracle, CostModel(self.oracle.graph)
        total = dense_cost(CostModel(self.oracle.whole), self.asked.of)

        def share(changes: Changes, widths: Ints) -> float:
            cost = (
                oracle.params(changes) if self.asked.of == "params" else costs.of(self.asked.of, lost(oracle, widths))
            )
            return 1 - cost / total

        bounds = self.limits.bounds(cap, {})
        free = [not held for held in ignored(oracle.graph, self.limits.ignore)]
        most = [bounds.most(g, n) if free[g] else 0 for g, n in enumerate(oracle.sizes.tolist())]
        values = [np.sort(self.rank[g.name]) for g in oracle.graph.groups]
        harm = [np.concatenate([[0.0], np.cumsum(v)]) for v in values]
        least, exact = oracle.sizes - np.array(most), self.asked.exact

        def fits(widths: Ints) -> bool:
            scores = self.asked.scores
            return not exact or not isinstance(chosen(oracle.graph, widths, scores, {}, exact), Refusal)

        return Search(oracle, self.ties.ties, share, least, harm, self.limits.multiple, fits)

    def nearest(self) -> Instance | BudgetError:
        """The instance whose share is nearest to what was asked.

        Raises:
            RewriteError: none of the nearest configs could be proven.
        """
        asked, most = self.asked.ratio, 0.0
        for cap in self.limits.caps:
            states = self.search(cap).near(asked)
            most = max(s.share for s in states)
            if abs(states[0].share - asked) <= NEAR:
                break
        made: Instance | Refusal = Refusal("no config was tried")
        for state in states[:TRIES]:
            if abs(state.share - asked) > NEAR and not self.limits.nearest:
                return self._too_far(states[0], most, made)
            made = instance(self.net, self.oracle, state.changes, self.asked)
            if isinstance(made, Instance):
                return replace(made, steps=tuple(map(str, self.ties.ties)))
        raise RewriteError(f"no {self.name} that its constructor makes could be proven: {made}")

    @property
    def name(self) -> str:
        """The class."""
        return type(self.net).__name__

    def _too_far(self, state: State, most: float, made: Instance | Refusal) -> BudgetError:
        steps = "; ".join(map(_told, self.ties.ties)) or "nothing"
        told = {**self.ties.refused, **self.oracle.constructor.refused}
        refused = "; ".join(f"{entry}: {why}" for entry, why in list(told.items())[:MOST])
        why = f" The nearest could not be proven ({made})." if isinstance(made, Refusal) and made.why else ""
        return BudgetError(
            f"{self.asked.ratio:.1%} of {self.asked.of} cannot be removed from this {self.name} with shape='stock': "
            f"the nearest that {self.oracle.constructor.name} makes is {state.share:.1%}, and at most {most:.1%} goes."
            f"{why} What can shrink: {steps}. What cannot: {refused or 'nothing else'}. Pass nearest=True to take "
            f"{state.share:.1%}, or shape='free'",
            reachable=most,
        )


def _told(tie: Tie) -> str:
    """What can shrink, and why in no smaller steps."""
    return f"{tie} ({tie.coarse}, in smaller steps)" if tie.coarse else str(tie)


def narrowing(net: nn.Module, oracle: Oracle, asked: Asked, limits: Limits, knapsack: bool) -> Narrowing:
    """Find what a constructor allows.

    Args:
        knapsack: whether scores add up, so that a channel counts the more the less its group has left.
    """
    values = {name: np.asarray(v, float) for name, v in asked.scores.items()}

    def found(oracle: Oracle) -> Ties:
        def proof(changes: Changes) -> Refusal | None:
            made = instance(net, oracle, changes, asked)
            return made if isinstance(made, Refusal) else None

        return find_ties(oracle, proof)

    ties = found(oracle)
    spelt = _spelt_out(oracle, ties)
    if spelt is not oracle:
        oracle, ties = spelt, found(spelt)
    rank = {name: marginal_worth(v) for name, v in values.items()} if knapsack else values
    return Narrowing(net, oracle, asked, limits, ties, rank)


def oracle_of(net: nn.Module, constructor: Constructor, graph: ChannelGraph) -> Oracle:
    """The oracle of a model.

    Raises:
        RewriteError: the config does not make this model.
    """
    oracle = Oracle(constructor, graph)
    what = f"shape='stock': {oracle.constructor.name} does not make this {type(net).__name__}"
    if isinstance(oracle.base, Refusal):
        raise RewriteError(f"{what}: {oracle.base}")
    shapes = {name: tuple(t.shape) for name, t in named_tensors(net)}
    odd = sorted(n for n in shapes.keys() | oracle.base.shapes.keys() if shapes.get(n) != oracle.base.shapes.get(n))
    if odd:
        have, makes = shapes.get(odd[0]), oracle.base.shapes.get(odd[0])
        raise RewriteError(
            f"{what}: {odd[0]} is of shape {have}, its config makes {makes}; prune the stock model, not one that was "
            "pruned or changed"
        )
    return oracle


def _spelt_out(oracle: Oracle, ties: Ties) -> Oracle:
    """The same with entries that the config leaves open, or does not name, where all that could shrink still can.

    A config without `head_dim`, say, makes it of two others; spelt out, these are free of each other.
    """
    base, made = oracle.base, oracle
    assert isinstance(base, Snapshot)

    def told(name: str, value: int) -> Oracle:
        return made.spelling(name, value)

    for name, values in _left_open(oracle, base).items():
        if _same(base, told(name, ODD).base):
            continue  # it sets nothing
        other = next((o for v in values if _same(base, (o := told(name, v)).base)), made)
        shrunk = ({p: v - s for p, v, s in zip(t.entries, t.values, t.steps, strict=True)} for t in ties.ties)
        if not any(isinstance(other.widths(changes), Refusal) for changes in shrunk):
            made = other
    return made


def _left_open(oracle: Oracle, base: Snapshot) -> dict[str, list[int]]:
    """Entries that are None, with the widths of groups; and integers that sizes are made of, with their values."""
    out: dict[str, list[int]] = {}
    for path, name in sorted(read_integers(oracle.graph)):
        value = base.attributes.get((path, name))
        if oracle.constructor.config.get(name) is None and "." not in name and type(value) is int:
            out.setdefault(name, []).append(value)
    sizes = {a.fixed + sum(m * int(oracle.sizes[g]) for g, m in a.times.items()) for a in oracle.axes if a.times}
    for name, value in oracle.constructor.config.items():
        if value is None:
            out.setdefault(name, []).extend(sorted(sizes))
    return {name: list(dict.fromkeys(values)) for name, values in out.items()}


def _same(base: Snapshot, made: Snapshot | Refusal) -> bool:
    """Whether a config makes the same sizes and numbers, whatever else it tells."""
    if isinstance(made, Refusal) or made.shapes != base.shapes:
        return False
    return all(made.attributes.get(k) == v for k, v in base.attributes.items())
