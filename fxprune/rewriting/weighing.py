"""What samples and places count where a layer is fitted: as much as the loss depends on what the layer gives there.

    w = e + d / mean of d        d: see `fxprune.scoring.dependence`

d is that of the dense model, by one probe, and some samples hold most of it: a classifier reads its class token alone,
and is in doubt about few images.  So a part of the weight, e, is even: EVEN at least, and as much as leaves a layer of
m columns m samples in effect.  Of n samples with the coefficient of variation c of d these are

    (Σ w)² / Σ w² = n (1 + e)² / ((1 + e)² + c²) ≥ m        e = max(EVEN, c √(m / (n − m)) − 1)

and where there are no more samples than columns, all count alike.

Source: rows of layer-wise problems weighed by gradients of the loss, Kim et al., GuidedQuant, ICML 2025; the effective
number of samples: Kish, Survey Sampling, 1965.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from fxprune.errors import FxPruneError
from fxprune.graph.modules import sharded
from fxprune.rewriting.regression import Found, looked_at
from fxprune.scoring import distributed as ranks
from fxprune.scoring.context import Context
from fxprune.scoring.dependence import dependence
from fxprune.scoring.outlook import outlook
from fxprune.scoring.parts import out_of_memory
from fxprune.scoring.recomputing import recomputing

EVEN = 0.1
MOST = 256  # batches; of more the weights themselves would fill the memory
Roots: TypeAlias = Mapping[str, Tensor]  # of each weight, √w of the samples and places that are looked at


class Backward:
    """What a pass needs, for a foresight of its memory."""

    needs: ClassVar[frozenset[str]] = frozenset({"data", "loss"})


def roots(ctx: Context, found: Mapping[str, Found]) -> list[Roots]:
    """Of each batch, what its samples and places count; nothing where all count alike."""
    once = {n: f.reader.axis for n, f in found.items() if f.calls == 1 and f.aligned and f.reader is not None}
    if not once or sharded(ctx.model):
        return []
    held: list[dict[str, Tensor]] = []
    why = ""
    try:
        if not outlook(ctx, Backward).fits:
            raise MemoryError("the memory that is free need not hold a backward pass")
        with recomputing(ctx, Backward):
            for number, batch in enumerate(ctx.track("what samples count")):
                if number == MOST:
                    raise MemoryError(f"there are more than {MOST} batches")
                own = replace(ctx, data=[batch], seed=ctx.seed + number, memo={}, progress=False)
                each = dependence(own, next(iter(own.batches)), once)
                held.append({name: looked_at(each[name][0], 0) for name in once if len(each.get(name, ())) == 1})
    except (FxPruneError, RuntimeError, MemoryError) as e:
        if not isinstance(e, FxPruneError) and not out_of_memory(e):
            raise
        why = f"{e!s:.200}"
    if not why and not any(held):
        why = "the loss makes nothing of what the model gives"
    if ranks.largest(float(bool(why)), ctx.device):
        ctx.note(f"samples and places count alike in the correction: {why or 'another process has it so'}")
        return []
    columns = {name: _columns(ctx, found[name]) for name in once}
    return _relative(held, columns, ctx.device)


def _columns(ctx: Context, found: Found) -> int:
    """What a layer has to fit for each output, of the dense model's."""
    reader = found.reader
    assert reader is not None
    weight = ctx.tensors[reader.weight]
    return (weight[0].numel() if reader.wide else weight.shape[reader.axis]) + 1


def _relative(held: list[dict[str, Tensor]], columns: dict[str, int], device: torch.device) -> list[Roots]:
    """√w of all batches, of the weights that every batch of every process has."""
    sums = torch.zeros(len(columns), 4, dtype=torch.float64)  # of d, of d², how many, batches that have none
    for row, name in zip(sums, columns, strict=True):
        for d in (each.get(name) for each in held):
            row += torch.tensor([0.0, 0.0, 0.0, 1.0]) if d is None else _sums(d)
    if ranks.several():
        sums = sums.to(device)
        ranks.add_up([sums])
    out: list[dict[str, Tensor]] = [{} for _ in held]
    for (total, squares, n, none), (name, m) in zip(sums.tolist(), columns.items(), strict=True):
        if total <= 0 or none or n <= m:
            continue
        mean = total / n
        spread = math.sqrt(max(0.0, squares / n / mean**2 - 1))
        even = max(EVEN, spread * math.sqrt(m / (n - m)) - 1)
        for own, each in zip(out, held, strict=True):
            own[name] = (even + each[name] / mean).sqrt()
    return list(out)


def _sums(d: Tensor) -> Tensor:
    wide = d.cpu().double()
    return torch.stack([wide.sum(), wide.square().sum(), torch.tensor(float(d.numel())), torch.tensor(0.0)])
