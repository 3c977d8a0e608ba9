"""What a criterion sees of a model: batches and a loss of the caller's, or of the model's adapter."""

from __future__ import annotations

from typing import Any

from fxprune.adapter import Adapter
from fxprune.arguments import shown
from fxprune.errors import InputsError
from fxprune.pruning.order import Scoring
from fxprune.scoring.score import needs_of
from fxprune.scoring.streaming import as_batches
from fxprune.scoring.timesteps import Timesteps


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


def seeing(adapter: Adapter, timesteps: str | Timesteps | None, made: bool = True) -> Adapter:
    """The adapter, with losses and calibration samples at such times.

    Args:
        made: whether the adapter makes one of them; else the caller brings both.

    Raises:
        InputsError: it does not, or the model knows no times.
    """
    if timesteps is None:
        return adapter
    seen = adapter.seeing(timesteps)
    if not made:
        raise InputsError(
            f"timesteps={shown(timesteps)} says at which times the loss of the model's family looks, and this call "
            "brings loss=, which chooses its times itself: leave one of them out"
        )
    return seen
