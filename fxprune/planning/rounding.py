"""Widths that a device runs fast: what `round_to=` keeps, and which multiple `round_to="auto"` takes.

    CPU    1, 2 and 4 vectors: 16, 32, 64 floats with AVX-512, half as many with AVX2
    GPU    8, 16, 32, 64: what tensor cores take at a time, up to a tile

`auto` takes the largest multiple whose plan is within 1 % of the asked ratio and keeps at least 99 % of the scores
that the unrounded plan keeps (a score counts as its rank among all channels).  With `of="latency"`, where all plans are
equally fast, it takes the one that keeps most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.trace import place_of
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.plan import Plan

NEAR = 0.01  # how far from the asked ratio a rounded plan may be
KEPT = 0.99  # share of the kept scores that it still has
VECTOR = {"AVX512": 64, "AVX2": 32}  # bytes


def fast_widths(device: torch.device, dtype: torch.dtype) -> tuple[int, ...]:
    """Multiples of channels that the device runs fast, the largest first."""
    if device.type != "cpu":
        return (64, 32, 16, 8)
    lanes = VECTOR.get(torch.backends.cpu.get_cpu_capability(), 16) // max(1, min(4, dtype.itemsize))
    return (4 * lanes, 2 * lanes, lanes)


def best_width(
    attempt: Callable[[int], Plan], graph: ChannelGraph, scores: Mapping[str, Floats], scope: str = "global"
) -> Plan:
    """The plan of the best multiple (see above).

    Args:
        attempt: the plan whose widths are multiples of a number.
        scores: one score a channel, by group name.
        scope: "local" ranks every group by itself.

    Raises:
        BudgetError: what the unrounded attempt raises.
    """
    plain = attempt(1)
    ranks = {k: _ranked({k: v})[k] for k, v in scores.items()} if scope == "local" else _ranked(scores)
    total = sum(float(r.sum()) for r in ranks.values())

    def kept(made: Plan) -> float:
        return total - sum(float(ranks[k][list(c)].sum()) for k, c in made.removed.items())

    found = [plain]
    for width in fast_widths(*place_of(graph.traced)):
        try:
            made = attempt(width)
        except BudgetError:
            continue
        if abs(made.achieved - made.ratio) > NEAR:
            continue
        found.append(made)
        if made.of != "latency" and kept(made) >= KEPT * kept(plain):
            return made
    return max(found, key=kept) if plain.of == "latency" else plain


def _ranked(scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """The rank of every channel among all, in (0, 1]."""
    flat = np.concatenate(list(scores.values()))
    rank = np.empty(len(flat))
    rank[np.argsort(flat, kind="stable")] = np.arange(1, len(flat) + 1) / len(flat)
    cuts = np.cumsum([len(v) for v in scores.values()])[:-1]
    return dict(zip(scores, np.split(rank, cuts), strict=True))
