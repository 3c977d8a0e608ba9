"""Whether a loss looks at the model that it is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxprune.errors import InputsError
from fxprune.scoring.observation import Observer


@contextlib.contextmanager
def looking(model: nn.Module, who: str) -> Iterator[None]:
    """Within, some module of the model must be called, or one of its weights be used.

    Args:
        model: what is measured.
        who: what measures, for the message.

    Raises:
        InputsError: at the end, where nothing of the kind has happened.
    """
    used: list[Any] = []
    handles = [m.register_forward_pre_hook(lambda *_: used.append(None)) for m in model.modules()]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with Observer(tensors, used.append):
            yield
    finally:
        for handle in handles:
            handle.remove()
    if not used:
        raise InputsError(
            f"{who}: loss(model, batch) does not look at the model it is given, and cannot tell one from another; call "
            "model(...) in it"
        )
