"""The magnitudes of a DoRA, for a layer that loses inputs and outputs.

    y = m · V x / |V|        V = W + scaling · B A,  |V| over the inputs of each output

Where inputs go, the norms of what stays are smaller, so that `m` is multiplied by |V kept| / |V|: the same rows of the
same merged weight stay as without the norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fxprune.errors import InputsError


@dataclass
class Factors:
    """What a state dict holds of one LoRA layer: (rank, in), (out, rank), and alpha."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Layer:
    """A layer of the dense model with its LoRA, and the positions that stay of its outputs and inputs (None: all)."""

    key: str
    module: nn.Module = field(repr=False)
    factors: Factors = field(repr=False)
    outputs: Tensor | None = None
    inputs: Tensor | None = None


def magnitude(value: Tensor, layer: Layer, scaling: float | None) -> Tensor:
    """The magnitudes of what stays, without the factors that rows of the pruned weight may hold.

    Raises:
        InputsError: they are not one an output, or what they are made of is not there.
    """
    weight = _outputs_first(layer)
    axes = [d for d, n in enumerate(value.shape) if n == weight.shape[0]]
    if value.numel() != weight.shape[0] or not axes:
        raise InputsError(
            f"{layer.key!r:.120} is of shape {tuple(value.shape)}, not one magnitude for each of {weight.shape[0]} "
            "outputs: merge this DoRA into the model, and prune that"
        )
    at = next(d for d in axes if value.shape[d] == value.numel())
    kept = value if layer.outputs is None else value.index_select(at, layer.outputs.to(value.device))
    if layer.inputs is None:
        return kept
    whole = _merged(weight, layer, scaling)
    whole = whole if layer.outputs is None else whole[layer.outputs]
    rest = whole.index_select(1, layer.inputs).flatten(1).norm(dim=1) / whole.flatten(1).norm(dim=1)
    made: Tensor = kept * rest.nan_to_num(1.0).to(kept.device, kept.dtype).view(kept.shape)
    return made


def _outputs_first(layer: Layer) -> Tensor:
    weight: Any = layer.module.weight
    if isinstance(layer.module, nn.Embedding):
        raise InputsError(f"{layer.key!r:.120} is a DoRA of an embedding: merge it into the model, and prune that")
    transposed = getattr(layer.module, "nf", None) == weight.shape[-1]
    made: Tensor = weight.detach().T if transposed else weight.detach()
    return made


def _merged(weight: Tensor, layer: Layer, scaling: float | None) -> Tensor:
    """W + scaling · B A, in float64."""
    a, b = layer.factors.down, layer.factors.up
    if a is None or b is None:
        raise InputsError(f"{layer.key!r:.120} comes without the two factors of its layer, which its norms are made of")
    if layer.factors.alpha is not None:
        scaling = layer.factors.alpha / a.shape[0]
    if scaling is None:
        raise InputsError(
            f"{layer.key!r:.120} is of a DoRA, whose norms change where inputs go, and its file does not say how much "
            "its factors count: pass scaling= (lora_alpha / r, of its adapter_config.json)"
        )
    made = (b.double().flatten(1) @ a.double().flatten(1)) * scaling
    if made.numel() != weight.numel():
        raise InputsError(f"{layer.key!r:.120} has factors of another shape than its layer: merge it, and prune that")
    return weight.cpu().double() + made.reshape(weight.shape).to("cpu")
