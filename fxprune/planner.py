"""`plan`: the channels whose removal meets a budget, lowest scores first, every constraint satisfied."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.cost import MEASURES, CostModel
from fxprune.errors import BudgetError, CriterionError
from fxprune.labels import Bools
from fxprune.moves import Limits, Move, sequences
from fxprune.plan import NormChange, Plan
from fxprune.score import Scores

Floats = npt.NDArray[np.float64]
TRIES = 2000  # moves tried after the prefix
NEAR = 0.005  # how far from the asked ratio an exact plan may be before norms are regrouped


def plan(
    graph: ChannelGraph,
    scores: Scores | Mapping[str, Floats],
    ratio: float,
    of: str = "params",
    *,
    ignore: Sequence[str] = (),
    round_to: int = 1,
    max_ratio: float = 0.9,
    exact_norms: bool = False,
    scope: str = "global",
) -> Plan:
    """Choose the channels that go.

    Args:
        scores: one score a channel and group (low goes first), from `fxprune.score`.
        ratio: share of `of` to remove, in [0, 1).
        of: "params", "macs" (multiply-accumulates of one forward on the example inputs) or "channels".
        ignore: tensor or module names, or globs of these, that stay as they are.
        round_to: widths of groups without a norm constraint are kept multiples of this.
        max_ratio: largest share of its channels that one group may lose.
        exact_norms: never regroup a group norm.
        scope: "global" ranks all channels together, "local" each group by itself.

    Raises:
        BudgetError: where the ratio is out of range or cannot be reached.
        CriterionError: where scores are missing or not finite.
    """
    if not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio} is outside [0, 1): it is the share of {of} to remove, such as 0.4")
    if of not in MEASURES:
        raise BudgetError(f"of={of!r} is unknown; choose one of {', '.join(MEASURES)}")
    if not 0 < max_ratio <= 1 or round_to < 1:
        raise BudgetError(f"max_ratio={max_ratio} must be in (0, 1], round_to={round_to} at least 1")
    if scope not in ("global", "local"):
        raise BudgetError(f"scope={scope!r} is unknown; choose global or local")
    values = _checked(graph, scores.values if isinstance(scores, Scores) else scores)
    name = scores.criterion if isinstance(scores, Scores) else "given scores"
    cost = CostModel(graph)
    allowed = [not _ignored(graph, g, ignore) for g in range(len(graph.groups))]
    limits = Limits(max_ratio, round_to)
    if scope == "local":
        values = {k: _ranks(v) for k, v in values.items()}
    met = []
    for exact in (True,) if exact_norms else (True, False):
        met.append(_meet(cost, sequences(graph, values, limits, allowed, exact), ratio, of))
        if abs(met[-1].share - ratio) <= NEAR:
            break
    best = min(met, key=lambda m: abs(m.share - ratio))
    reachable = max(m.reachable for m in met)
    if reachable < ratio - 1e-9 and best.share < ratio - NEAR:
        raise BudgetError(_too_far(graph, reachable, ratio, of, ignore, max_ratio, exact_norms), reachable=reachable)
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


def _order(parts: list[list[Move]]) -> list[tuple[int, Move]]:
    """All moves by score; within a part in its own order (a later move waits for an earlier, dearer one)."""
    if not parts:
        return []
    waits = np.concatenate([np.maximum.accumulate([m.score for m in seq]) for seq in parts])
    part = np.repeat(np.arange(len(parts)), [len(seq) for seq in parts])
    moves = [m for seq in parts for m in seq]
    return [(int(part[i]), moves[i]) for i in np.argsort(waits, kind="stable").tolist()]


@dataclass(frozen=True)
class _Met:
    """Moves taken, channels each group loses by them, the share of the cost that goes, and that of all moves."""

    moves: list[Move]
    removed: Floats
    share: float
    reachable: float


def _loss(move: Move, n: int) -> Floats:
    out = np.zeros(n)
    for g, c in move.channels:
        out[g] += len(c)
    return out


def _meet(cost: CostModel, parts: list[list[Move]], ratio: float, of: str) -> _Met:
    """The longest prefix of all moves that does not overshoot, then smaller moves into what is left of the budget."""
    order = _order(parts)
    n = len(cost.graph.groups)
    total = cost.of(of, np.zeros(n))

    def share(removed: Floats) -> float:
        return 1 - cost.of(of, removed) / total

    at, removed, everything = _prefix(order, lambda r: share(r) <= ratio + 1e-9, n)
    taken = [m for _, m in order[:at]]
    skipped: dict[int, Move] = {}
    tries = 0
    for p, m in order[at:]:
        if p in skipped or tries >= TRIES:
            continue
        tries += 1
        if share(removed + _loss(m, n)) <= ratio + 1e-9:
            removed = removed + _loss(m, n)
            taken.append(m)
        else:
            skipped[p] = m
    over = [(share(removed + _loss(m, n)) - ratio, k) for k, m in enumerate(skipped.values())]
    if over and min(over)[0] < ratio - share(removed):
        last = list(skipped.values())[min(over)[1]]
        taken.append(last)
        removed = removed + _loss(last, n)
    return _Met(taken, removed, share(removed), share(everything))


def _prefix(order: list[tuple[int, Move]], fits: Callable[[Floats], bool], n: int) -> tuple[int, Floats, Floats]:
    """Length of the longest prefix whose loss still fits (the cost falls with every move), its loss, that of all."""
    groups = np.array([g for _, m in order for g, _ in m.channels], np.int64)
    counts = np.array([len(c) for _, m in order for _, c in m.channels], float)
    ends = np.cumsum([0] + [len(m.channels) for _, m in order])

    def loss(k: int) -> Floats:
        return np.bincount(groups[: ends[k]], counts[: ends[k]], minlength=n).astype(float)

    low, high = 0, len(order)
    while low < high:
        mid = (low + high + 1) // 2
        low, high = (mid, high) if fits(loss(mid)) else (low, mid - 1)
    return low, loss(low), loss(len(order))


def _as_plan(graph: ChannelGraph, cost: CostModel, met: _Met, ratio: float, of: str, criterion: str) -> Plan:
    gone: dict[str, list[int]] = {}
    for m in met.moves:
        for g, c in m.channels:
            gone.setdefault(graph.groups[g].name, []).extend(c)
    removed = {g.name: tuple(sorted(gone[g.name])) for g in graph.groups if g.name in gone}
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
