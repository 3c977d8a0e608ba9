"""One cut by several processes: of a model that `fully_shard` (FSDP2) has shared out, every process makes the same.

whole weights in each process → scores of all parts of the data, averaged → one plan → the same dense model in each
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.adapter import find_adapter
from fxprune.errors import InputsError, PlanError
from fxprune.graph.modules import sharded
from fxprune.pruning.order import Order
from fxprune.reporting.report import report
from fxprune.scoring import distributed as ranks
from fxprune.scoring.entire import entire
from fxprune.scoring.score import Scores

WHOLE = "call fxprune.prune(fxprune.whole(model), ...) on one process"


@contextlib.contextmanager
def put_together(model: Any, order: Order) -> Iterator[Any]:
    """Within, the model, or the pipeline around it, with its weights whole.

    Raises:
        InputsError: the model is sharded, and the order asks for what processes would not do alike.
    """
    net, back = find_adapter(model).unwrap(model)
    if not sharded(net):
        yield model
        return
    kind = f"the parameters of this {type(net).__name__} are sharded (FSDP)"
    if order.inplace:
        raise InputsError(f"{kind}, which inplace=True cannot cut: leave it out, and fxprune.shard_like(small, model)")
    if order.budget.of == "latency":
        raise InputsError(f"{kind}, and every process would measure a latency of its own: {WHOLE}, or use of='macs'")
    if order.replace is not None:
        raise InputsError(f"{kind}, and replace={order.replace!r} fits layers to one process's data: {WHOLE}")
    with ranks.told(), entire(net) as made:
        yield back(made)


@contextlib.contextmanager
def parts_of(given: Any) -> Iterator[None]:
    """Within, batches are parts of one where they were given; those that an adapter draws are the same everywhere."""
    with contextlib.nullcontext() if given is None else ranks.parts(), ranks.told():
        yield


def agreed(scores: Scores, net: nn.Module) -> Scores:
    """The mean of all processes' scores, the same bits in each; only where they score the parts of one batch."""
    if not ranks.split():
        return scores
    pieces = [*scores.values.values(), np.array(list(scores.blocks.values()))]
    flat = torch.from_numpy(np.concatenate(pieces)).to(next(net.parameters()).device)
    ranks.add_up([flat])
    mean = np.split((flat / ranks.number()).cpu().numpy(), np.cumsum([len(p) for p in pieces])[:-1])
    blocks = dict(zip(scores.blocks, mean.pop().tolist(), strict=True))
    return replace(scores, values=dict(zip(scores.values, mean, strict=True)), blocks=blocks)


def require_alike(small: Any) -> None:
    """Raise `PlanError` where the processes did not make the same plan."""
    made = report(find_adapter(small).unwrap(small)[0]).plan.to_json()
    if len({tuple(told) for told in ranks.gathered([zlib.crc32(made.encode())])}) > 1:
        raise PlanError(
            "the processes made different plans: the model, its example inputs, options or loss are not the same in "
            f"each; make them so, or {WHOLE}"
        )
