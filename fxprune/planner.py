"""`plan`: the channels whose removal meets a budget, lowest scores first, every constraint satisfied."""

from __future__ import annotations

import fnmatch
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.cost import MEASURES, CostModel
from fxprune.depth.choose import GRANULARITIES, plan_depth
from fxprune.errors import BudgetError, CriterionError
from fxprune.labels import Bools
from fxprune.moves import Limits, Moves, sequences
from fxprune.plan import NormChange, Plan
from fxprune.score import Scores

Floats = npt.NDArray[np.float64]
TRIES = 2000  # moves tried after the prefix
MOST = 0.9  # share of its channels that a group may lose, unless asked otherwise
NEAR = 0.005  # how far from the asked ratio an exact plan may be before norms are regrouped


def plan(
    graph: ChannelGraph,
    scores: Scores | Mapping[str, Floats],
    ratio: float,
    of: str = "params",
    *,
    ignore: Sequence[str] = (),
    round_to: int = 1,
    max_ratio: float | None = None,
    exact_norms: bool = False,
    scope: str = "global",
    granularity: str = "channel",
) -> Plan:
    """Choose the channels, or the blocks, that go.

    Args:
        scores: one score a channel and group (low goes first), from `fxprune.score`.
        ratio: share of `of` to remove, in [0, 1).
        of: "params", "macs" (multiply-accumulates of one forward on the example inputs) or "channels".
        ignore: tensor or module names, or globs of these, that stay as they are.
        round_to: widths of groups without a norm constraint are kept multiples of this.
        max_ratio: largest share of its channels that one group may lose; None: 0.9, or all but one channel where the
            ratio cannot be reached otherwise.
        exact_norms: never regroup a group norm.
        scope: "global" ranks all channels together, "local" each group by itself.
        granularity: "channel"; "block": residual branches go whole, none is narrowed; "both": blocks for at most half
            of the ratio, channels for the rest.

    Raises:
        BudgetError: where the ratio is out of range or cannot be reached.
        CriterionError: where scores are missing or not finite.
    """
    options = {k: v for k, v in locals().items() if k not in ("graph", "scores", "ratio", "of", "granularity")}
    if not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio} is outside [0, 1): it is the share of {of} to remove, such as 0.4")
    if of not in MEASURES:
        raise BudgetError(f"of={of!r} is unknown; choose one of {', '.join(MEASURES)}")
    if not 0 < (1 if max_ratio is None else max_ratio) <= 1 or round_to < 1:
        raise BudgetError(f"max_ratio={max_ratio} must be in (0, 1], round_to={round_to} at least 1")
    if scope not in ("global", "local"):
        raise BudgetError(f"scope={scope!r} is unknown; choose global or local")
    if granularity not in GRANULARITIES:
        raise BudgetError(f"granularity={granularity!r} is unknown; choose one of {', '.join(GRANULARITIES)}")
    if granularity != "channel":
        channels = functools.partial(plan, of=of, **options) if granularity == "both" else None
        return plan_depth(graph, scores, ratio, of, ignore, channels)
    values = _checked(graph, scores.values if isinstance(scores, Scores) else scores)
    name = scores.criterion if isinstance(scores, Scores) else "given scores"
    cost = CostModel(graph)
    allowed = [not _ignored(graph, g, ignore) for g in range(len(graph.groups))]
    if scope == "local":
        values = {k: _ranks(v) for k, v in values.items()}
    met = []
    caps = (MOST, 1.0) if max_ratio is None else (max_ratio,)
    for cap, exact in itertools.product(caps, (True,) if exact_norms else (True, False)):
        met.append(_meet(cost, sequences(graph, values, Limits(cap, round_to), allowed, exact), ratio, of))
        if abs(met[-1].share - ratio) <= NEAR:
            break
    best = min(met, key=lambda m: abs(m.share - ratio))
    reachable = max(m.reachable for m in met)
    if reachable < ratio - 1e-9 and best.share < ratio - NEAR:
        raise BudgetError(_too_far(graph, reachable, ratio, of, ignore, caps[-1], exact_norms), reachable=reachable)
    return _as_plan(graph, cost, best, ratio, of, name)


def _checked(graph: ChannelGraph, values: Mapping[str, Floats]) -> dict[str, Floats]:
    if not graph.groups:
        causes = ", ".join(sorted({h.cause for h in graph.frozen()})[:4])
        raise BudgetError(
            f"nothing in this {graph.model_class} can be pruned ({causes}); see graph.frozen()", reachable=0.0
        )
    out = {}
    for g in graph.groups:
        v = np.asarray(values.get(g.name, ()), float)
        if v.shape != (len(g),) or not np.isfinite(v).all():
            raise CriterionError(
                f"scores of group {g.name!r} are {'not finite' if v.shape == (len(g),) else f'of shape {v.shape}'}; "
                f"one finite number for each of its {len(g)} channels is needed"
            )
        out[g.name] = v
    return out


def _ranks(v: Floats) -> Floats:
    return np.argsort(np.argsort(v, kind="stable"), kind="stable") / len(v)


def _ignored(graph: ChannelGraph, g: int, patterns: Sequence[str]) -> bool:
    names = {s.tensor for s in graph.groups[g].slices}
    prefixes = {n[:i] for n in names for i in range(len(n)) if n[i] == "."} | names
    return any(fnmatch.fnmatchcase(n, p) for n in prefixes for p in patterns)


@dataclass(frozen=True)
class _Queue:
    """All moves of all parts in the order in which they are tried; `part[k]` is the part that move k belongs to."""

    part: npt.NDArray[np.int64]
    moves: Moves
    groups: int

    def loss(self, first: int, last: int) -> Floats:
        """Channels that each group loses by moves first, ..., last - 1."""
        taken = self.moves.group[self.moves.ends[first] : self.moves.ends[last]]
        return np.bincount(taken, minlength=self.groups).astype(float)


def _queue(parts: list[Moves], groups: int) -> _Queue:
    """All moves by score; within a part in its own order (a later move waits for an earlier, dearer one)."""
    if not parts:
        none = np.zeros(0, np.int64)
        return _Queue(none, Moves(np.zeros(0), none, none, np.zeros(1, np.int64)), groups)
    order = np.argsort(np.concatenate([np.maximum.accumulate(seq.score) for seq in parts]), kind="stable")
    part = np.repeat(np.arange(len(parts)), [len(seq) for seq in parts])[order]
    sizes = np.concatenate([np.diff(seq.ends) for seq in parts])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[order]
    ends = np.concatenate([[0], np.cumsum(sizes[order])])
    slots = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes[order])
    score = np.concatenate([seq.score for seq in parts])[order]
    group = np.concatenate([seq.group for seq in parts])[slots]
    return _Queue(part, Moves(score, group, np.concatenate([seq.channel for seq in parts])[slots], ends), groups)


@dataclass(frozen=True)
class _Met:
    """Channels taken (group and index), channels each group loses, the share of the cost that goes, and can go."""

    group: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int64]
    removed: Floats
    share: float
    reachable: float


def _meet(cost: CostModel, parts: list[Moves], ratio: float, of: str) -> _Met:
    """The longest prefix of all moves that does not overshoot, then smaller moves into what is left of the budget."""
    queue = _queue(parts, len(cost.graph.groups))
    total = cost.of(of, np.zeros(queue.groups))

    def share(removed: Floats) -> float:
        return 1 - cost.of(of, removed) / total

    low, high = 0, len(queue.part)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if share(queue.loss(0, middle)) <= ratio + 1e-9 else (low, middle - 1)
    taken, removed = list(range(low)), queue.loss(0, low)
    stuck: set[int] = set()
    tries = 0
    for k in range(low, len(queue.part)):
        if queue.part[k] in stuck:
            continue
        more = removed + queue.loss(k, k + 1)
        if share(more) <= ratio + 1e-9:
            removed = more
            taken.append(k)
        else:
            stuck.add(int(queue.part[k]))
        tries += 1
        if tries == TRIES or len(stuck) == len(parts):
            break
    if ratio - share(removed) > NEAR:  # steps are coarse here: take one more where that is nearer
        after = {k: share(removed + queue.loss(k, k + 1)) for k in _next(queue, set(taken))}
        best = min(after, key=lambda k: after[k], default=None)
        if best is not None and after[best] - ratio < ratio - share(removed):
            taken.append(best)
            removed = removed + queue.loss(best, best + 1)
    ends = queue.moves.ends
    slots = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in taken]) if taken else np.zeros(0, np.int64)
    everything = share(queue.loss(0, len(queue.part)))
    return _Met(queue.moves.group[slots], queue.moves.channel[slots], removed, share(removed), everything)


def _next(queue: _Queue, taken: set[int]) -> list[int]:
    """The first move of every part that is not taken yet."""
    first: dict[int, int] = {}
    for k, part in enumerate(queue.part.tolist()):
        if k not in taken:
            first.setdefault(part, k)
    return list(first.values())


def _as_plan(graph: ChannelGraph, cost: CostModel, met: _Met, ratio: float, of: str, criterion: str) -> Plan:
    removed = {}
    for g in np.flatnonzero(met.removed).tolist():
        removed[graph.groups[g].name] = tuple(sorted(met.channel[met.group == g].tolist()))
    nothing = np.zeros(len(graph.groups))
    made = Plan(
        model=graph.model_class,
        fingerprint=graph.fingerprint,
        removed=removed,
        sizes={g.name: len(g) for g in graph.groups},
        ratio=ratio,
        of=of,
        achieved=met.share,
        cost={k: (cost.of(k, nothing), cost.of(k, met.removed)) for k in MEASURES},
        criterion=criterion,
    )
    return replace(made, norms=norm_changes(graph, made.keep(graph)))


def norm_changes(graph: ChannelGraph, keep: Bools) -> dict[str, NormChange]:
    """The number of groups that every group norm takes after pruning.

    Where each surviving norm group keeps equally many of its own members, the norm is exact; otherwise its channels
    are dealt into the largest number of groups, at most as many as before, that divides their count.
    """
    out = {}
    for norm in graph.facts.norm_groups:
        stays = keep[graph.component[norm.axis]].reshape(norm.groups, -1).sum(1)
        if stays.sum() == stays.size * stays.max(initial=0) and stays.max(initial=0) * norm.groups == len(norm.axis):
            continue
        alive = stays[stays > 0]
        if len(set(alive.tolist())) == 1:
            out[norm.node] = NormChange(norm.groups, len(alive), exact=True)
            continue
        total = int(stays.sum())
        after = max(d for d in range(1, norm.groups + 1) if total % d == 0)
        out[norm.node] = NormChange(norm.groups, after, exact=False)
    return out


def _too_far(
    graph: ChannelGraph, reachable: float, ratio: float, of: str, ignore: Sequence[str], max_ratio: float, exact: bool
) -> str:
    """How far one can go, and what is in the way."""
    held: dict[str, int] = {}
    for h in graph.frozen():
        if h.tensor in graph.parameters:
            held[h.cause] = held.get(h.cause, 0) + h.positions
    causes = ", ".join(f"{k} ({v} positions)" for k, v in sorted(held.items(), key=lambda x: -x[1])[:4])
    limits = [f"max_ratio={max_ratio}"] + [f"ignore={list(ignore)}"] * bool(ignore) + ["exact_norms=True"] * exact
    return (
        f"{ratio:.1%} of {of} cannot be removed from this {graph.model_class}: at most {reachable:.1%} can. "
        f"In the way: {causes or 'nothing frozen'}; limits: {', '.join(limits)}. "
        f"Ask for ratio={max(0.0, reachable - 0.005):.2f}, or loosen a limit"
    )
