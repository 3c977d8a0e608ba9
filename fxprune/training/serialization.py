"""State as plain data: tensors, numbers and text in dicts, lists and tuples, which `torch.load` reads without pickle.

to_to_plain(state)    arrays become {ARRAY: tensor}, mappings dicts, tensors copies on the CPU
from_plain(held)   and back
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import SaveError

ARRAY = "fxprune.array"


def to_plain(state: Any, where: str = "state") -> Any:
    """`state` in a form that `torch.load(weights_only=True)` reads.

    Raises:
        SaveError: it holds something else than tensors, arrays, numbers and text.
    """
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, np.ndarray):
        return {ARRAY: torch.from_numpy(state.copy())}
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, Mapping):
        return {k: to_plain(v, f"{where}[{k!r}]") for k, v in state.items()}
    if isinstance(state, list) or type(state) is tuple:
        return type(state)(to_plain(v, f"{where}[{i}]") for i, v in enumerate(state))
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise SaveError(
        f"{where} is a {type(state).__name__}, which cannot be written without pickle; use tensors, numbers and text "
        "in dicts, lists and tuples, or train without checkpoints"
    )


def from_plain(held: Any) -> Any:
    """What `plain` was given."""
    if isinstance(held, dict):
        return held[ARRAY].numpy() if held.keys() == {ARRAY} else {k: from_plain(v) for k, v in held.items()}
    if isinstance(held, (list, tuple)):
        return type(held)(map(from_plain, held))
    return held
