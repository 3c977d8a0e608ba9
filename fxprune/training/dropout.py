"""Training without dropout: what learns the dense model's answers, which have none, has no capacity to spare for it.

What is called as a function (`F.dropout`, attention's `dropout_p`, an LSTM's dropout), by a layer or a traced graph, is
told to keep everything.  Layers that draw by hand and have nothing of their own, such as stochastic depth, are put into
eval mode: which these are, a small input tells.

Source: Srivastava et al., Dropout, JMLR 2014; Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxprune.scoring.randomness import same_start

_RATES = {"p", "dropout", "dropout_p"}  # how the functions call their rate, where it is named
_FUNCTIONS = {"scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"}


def to_train(model: nn.Module, drops: bool) -> None:
    """Put a model into train mode; where it must not drop, layers that do no more than that into eval mode."""
    model.train()
    for module in () if drops else model.modules():
        if not (list(module.children()) or module.state_dict()) and _draws(module):
            module.eval()


def _draws(layer: nn.Module) -> bool:
    """Whether a layer draws random numbers, as far as it takes one tensor, on the CPU."""
    with same_start(), torch.no_grad(), contextlib.suppress(Exception):
        before = torch.get_rng_state(), random.getstate()
        layer.forward(torch.linspace(-1, 1, 128).view(2, 4, 4, 4))
        return not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate()
    return False


def dropping(drops: bool) -> contextlib.AbstractContextManager[Any]:
    """Within, functions drop as they are told, or keep everything."""
    return contextlib.nullcontext() if drops else _Kept()


class _Kept(TorchFunctionMode):
    """Functions with a dropout rate are told 0 instead.  Where they have a float by position, it is that rate."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "").partition(".")[0]
        if "dropout" in name or name in _FUNCTIONS:
            args = tuple(0.0 if isinstance(a, float) else a for a in args)
            named.update(dict.fromkeys(_RATES & named.keys(), 0.0))
        return func(*args, **named)
