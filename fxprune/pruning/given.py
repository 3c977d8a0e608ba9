"""What a criterion sees of a model: batches and a loss of the caller's, or of the model's adapter."""

from __future__ import annotations

from typing import Any

from fxprune.adapter import Adapter
from fxprune.pruning.order import Scoring
from fxprune.scoring.score import needs_of
from fxprune.scoring.streaming import as_batches


def given_to(
    adapter: Adapter, model: Any, scoring: Scoring, seed: int, progress: bool, needs: frozenset[str] | None = None
) -> dict[str, Any]:
    """Arguments of `fxprune.score` for a model (or a pipeline): what is needed and nobody gave is the adapter's.

    Args:
        needs: of what else looks at the data; None: of the criterion.
    """
    needs = needs_of(scoring.criterion) if needs is None else needs
    data, loss = as_batches(scoring.data, scoring.max_batches), scoring.loss
    if "data" in needs and data is None:
        data = adapter.calibration(model, scoring.samples, seed, progress)
    if needs & {"loss", "forward"} and loss is None:
        loss = adapter.loss_of(model, seed)
    return {"data": data, "loss": loss, "seed": seed, "progress": progress}
