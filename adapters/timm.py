"""timm: the model's own image size and input channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.adapter import Adapter, Constructor
from fxprune.adapters.tensors import draw
from fxprune.errors import InputsError
from fxprune.graph.modules import ExampleInputs, comes_from
from fxprune.stock.recall import called_with

MOST_CHANNELS = 16  # a first convolution over more reads patches (space to depth), not the image's own channels


class TimmAdapter(Adapter):
    """Models of `timm.create_model`: one image of `pretrained_cfg["input_size"]`.

    A model made with another `img_size=` or `in_chans=` says so in its patch embedding or first convolution, and that
    counts.  Knows no loss: timm models serve many tasks.
    """

    def recognises(self, given: object) -> bool:
        """A module defined in timm, with a `pretrained_cfg`."""
        return isinstance(given, nn.Module) and comes_from(given, "timm") and hasattr(given, "pretrained_cfg")

    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """One image, (1, C, H, W).

        Raises:
            InputsError: the model has no `input_size`.
        """
        cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
        size = cfg.get("input_size")
        if not size:
            raise InputsError(f"{type(model).__name__}.pretrained_cfg has no input_size: pass example_inputs=")
        channels, height, width = size
        first = _first_conv(model, cfg.get("first_conv"))
        if first is not None and first.in_channels < MOST_CHANNELS:
            channels = first.in_channels
        made_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if isinstance(made_for, (tuple, list)) and len(made_for) == 2:
            height, width = made_for
        return (draw(model, (1, channels, height, width), torch.Generator().manual_seed(0)),)

    def constructor(self, model: nn.Module) -> Constructor | None:
        """`timm.create_model` by the architecture's name; its keywords are the arguments of the class, as far as it
        takes them.
        """
        import timm

        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        if not isinstance(name, str) or not timm.is_model(name):
            return None
        given = dict(getattr(model, "_model_args", {}))

        def build(config: dict[str, Any]) -> nn.Module:
            made: nn.Module = timm.create_model(name, **{**given, **config})
            return made

        with torch.device("meta"):
            held = called_with(type(model), lambda: build({}))
            answers = {k: "" if k in given else _answer(build, k, v) for k, v in held.items() if v is not None}
        taken = {k: held[k] for k, words in answers.items() if not words}
        return Constructor(f'timm.create_model("{name}")', taken, build, {k: w for k, w in answers.items() if w})

    def widths(self, model: nn.Module) -> Mapping[str, tuple[str, int]]:
        """What `reset_classifier` makes a new classifier of: the width that the present one reads."""
        name = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
        name = name[0] if isinstance(name, (tuple, list)) and name else name
        names = dict(model.named_parameters())
        if not isinstance(name, str) or (weight := names.get(f"{name}.weight")) is None:
            return {}
        told = [n for n in ("num_features", "head_hidden_size") if getattr(model, n, None) == weight.shape[1]]
        return dict.fromkeys(told, (f"{name}.weight", 1))


def _answer(build: Callable[[dict[str, Any]], nn.Module], key: str, value: Any) -> str:
    """What `create_model` says to a keyword that it does not hand on to the class: some architectures fix theirs."""
    try:
        build({key: value})
    except (TypeError, ValueError) as e:
        return f"create_model says {type(e).__name__}: {e}"
    return ""


def _first_conv(model: nn.Module, name: Any) -> nn.Conv2d | None:
    """The convolution that reads the image, by the name (or the first of several names) in `pretrained_cfg`."""
    name = name[0] if isinstance(name, (tuple, list)) and name else name
    if not isinstance(name, str):
        return None
    try:
        found = model.get_submodule(name)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Conv2d) and found.groups == 1 else None
