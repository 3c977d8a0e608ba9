"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.arguments import MAPPING, MODULE, number, read_from, takes
from fxprune.errors import InputsError
from fxprune.graph.modules import in_shards
from fxprune.graph.sharding import resharded
from fxprune.training.carry_over import Carry


class Average:
    """Averages of all parameters and floating buffers: a ← d a + (1 − d) θ,  d = min(decay, (1 + t) / (10 + t)).

    The start is quick (t counts the steps), so that the first weights are soon forgotten.

    Attributes:
        decay: in [0, 1).
        values: name -> average, on the model's device.
        taken: t.
    """

    @takes(model=MODULE, decay=number("a number in [0, 1]", 0, 1))
    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputsError(f"ema_decay={decay} is outside [0, 1); 0.999 averages over about a thousand steps")
        self.decay, self.taken = decay, 0
        self.values: dict[str, Tensor] = {n: t.detach().clone() for n, t in _averaged(model).items()}

    @torch.no_grad()
    @takes(model=MODULE)
    def step(self, model: nn.Module) -> None:
        """Take in the weights as they are now.

        Raises:
            InputsError: they are of another model than the averages.
        """
        now = self._same(model)
        self.taken += 1
        weight = 1 - min(self.decay, (1 + self.taken) / (10 + self.taken))
        for shards in (False, True):  # which torch takes apart from tensors that are whole
            names = [n for n, t in now.items() if in_shards(t) == shards]
            if names:
                torch._foreach_lerp_([self.values[n] for n in names], [now[n] for n in names], weight)

    @torch.no_grad()
    @takes(model=MODULE)
    def copy_to(self, model: nn.Module) -> None:
        """Give the averages to a model.

        Raises:
            InputsError: they are of another one.
        """
        for name, tensor in self._same(model).items():
            tensor.copy_(self.values[name])

    def _same(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of the model that is averaged."""
        now = _averaged(model)
        for name in sorted(now.keys() | self.values.keys()):
            shapes = [tuple(held[name].shape) if name in held else "none" for held in (now, self.values)]
            if shapes[0] != shapes[1]:
                raise InputsError(
                    f"model has {name!r} of shape {shapes[0]}, the averages of shape {shapes[1]}: they are of another "
                    "model; after a hand-off go on with cut(carry)"
                )
        return now

    @takes(carry=Carry)
    def cut(self, carry: Carry) -> None:
        """Go on with the pruned model."""
        self.values = carry.named(self.values)

    def state_dict(self) -> dict[str, Any]:
        """Averages and t."""
        return {"values": dict(self.values), "taken": self.taken}

    @takes(state=MAPPING)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        with read_from("state", state, "the state of such averages"):
            self.taken, held = int(state["taken"]), state["values"]
            self.values = {n: held[n].to(t.device) for n, t in self.values.items()}


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    named = {**dict(resharded(model).named_parameters()), **dict(model.named_buffers())}
    return {n: t for n, t in named.items() if t.is_floating_point()}


def carry_average(carry: Carry, ema: Any) -> None:
    """Let averaged weights go on with the pruned model, in place.

    Raises:
        InputsError: they are of a kind that is not known.
    """
    if isinstance(ema, Average):
        ema.cut(carry)
    elif hasattr(ema, "shadow_params"):
        ema.shadow_params = carry.tensors(ema.shadow_params)
    elif isinstance(ema, torch.optim.swa_utils.AveragedModel):
        ema.module = carry.module(ema.module)
    else:
        raise InputsError(
            f"ema is a {type(ema).__name__}; pass an fxprune.Average, diffusers' EMAModel or torch's AveragedModel, or "
            "carry its tensors with fxprune.Carry(model, small, graph, plan).tensors(...)"
        )
