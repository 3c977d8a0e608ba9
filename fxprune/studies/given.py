"""What several studies do with their arguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fxprune.adapter import find_adapter
from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.planning.limits import Limits
from fxprune.scoring.batches import require_some
from fxprune.scoring.context import Loss
from fxprune.scoring.score import Criterion, Scores, needs_of, score
from fxprune.scoring.streaming import as_batches


def require_free(limits: Limits, what: str) -> None:
    """Raise `BudgetError` where limits are those of one plan alone.

    Args:
        what: is to be made of several, for messages.
    """
    if limits.ratios is not None:
        raise BudgetError(f"ratios= says how much of each part goes, which {what} is to find; leave it out")
    if limits.shape != "free":
        raise BudgetError(f"shape={limits.shape!r}: {what} is for shape='free'; make one stock shape by fxprune.prune")
    if limits.round_to == "auto":
        raise BudgetError(f'round_to="auto" is for one plan; pass a number for {what}, such as round_to=8')


def scores_of(
    model: Any,
    graph: ChannelGraph,
    criterion: str | type[Any] | Criterion,
    data: Iterable[Any] | None,
    loss: Loss | None,
    samples: int,
    seed: int,
    progress: bool,
) -> Scores:
    """Scores of a model (or of the one in a pipeline): what the criterion needs and nobody gave is the adapter's."""
    adapter = find_adapter(model)
    needs = needs_of(criterion)
    batches = as_batches(data)
    require_some(batches)
    if batches is None and "data" in needs:
        batches = adapter.calibration(model, samples, seed, progress)
    if loss is None and needs & {"loss", "forward"}:
        loss = adapter.loss_of(model, seed)
    net = adapter.unwrap(model)[0]
    return score(graph, net, criterion, data=batches, loss=loss, seed=seed, progress=progress)
