"""Training without dropout: what learns the dense model's answers, which have none, has no capacity to spare for it.

What is called as a function (`F.dropout`, attention's `dropout_p`, an LSTM's dropout), by a layer or a traced graph, is
told to keep everything.  Layers that drop by hand, such as stochastic depth, are put into eval mode.

Source: Srivastava et al., Dropout, JMLR 2014; Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

_RATES = {"p", "dropout", "dropout_p"}  # how the functions call their rate, where it is named
_FUNCTIONS = {"scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"}
_LAYERS = ("drop", "stochasticdepth")  # in the name of a layer's class


def to_train(model: nn.Module, drops: bool) -> None:
    """Put a model into train mode; where it must not drop, layers that do, and have nothing of their own, into eval."""
    model.train()
    for module in () if drops else model.modules():
        name = type(module).__name__.casefold()
        if any(part in name for part in _LAYERS) and not module.state_dict() and not list(module.children()):
            module.eval()


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
