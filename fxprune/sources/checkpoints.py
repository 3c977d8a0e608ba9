"""The tensors of a file of weights, and a model filled with them.

Files of safetensors, and what `torch.save` wrote of tensors; no pickle is run.  A checkpoint of a training loop holds
the weights under a key of its own, and a wrapper (DDP, torch.compile, a Lightning module) puts a prefix before names.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import SaveError

# Where training loops put weights; averaged ones first, as timm does.
KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "net", "params")
COUNTERS = "num_batches_tracked"  # absent from old checkpoints, and in no formula of eval mode
SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name, on the CPU.

    Raises:
        SaveError: there is no such file, or it holds anything but tensors.
    """
    if not path.is_file():
        raise SaveError(f"there is no file of weights {path}")
    try:
        held: Any = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except SaveError:
        raise
    except Exception as e:
        raise SaveError(f"{path} cannot be read as weights: {type(e).__name__}: {e!s:.200}") from e
    key = next((k for k in KEYS if isinstance(held, Mapping) and isinstance(held.get(k), Mapping)), None)
    found = held if key is None else held[key]
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise SaveError(f"{path} holds no tensors by name: save model.state_dict()")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise SaveError(
            f"{path} holds Python objects, which fxprune does not run: save the tensors alone, "
            "torch.save(model.state_dict(), ...), or as safetensors"
        ) from e


def fitting(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors by the model's own names: without the prefix that a wrapper has put before all of them."""
    wanted, held = set(model.state_dict()), dict(state)
    while held and not wanted & held.keys():
        first = {name.partition(".")[0] for name in held}
        if len(first) != 1 or not all("." in name for name in held):
            return dict(state)
        held = {name.partition(".")[2]: t for name, t in held.items()}
    return held


def classes_in(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """How many classes a checkpoint is of, where nothing else sets it apart from a model: first axes of one size."""
    own = model.state_dict()
    changed = [(tuple(own[n].shape), tuple(t.shape)) for n, t in state.items() if n in own and own[n].shape != t.shape]
    sizes = {(a[:1], b[:1]) for a, b in changed if a[1:] == b[1:]}
    return sizes.pop()[1][0] if len(sizes) == 1 and all(a[1:] == b[1:] and b for a, b in changed) else None


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give a model the tensors of a checkpoint, every one.

    Raises:
        SaveError: they are not those of such a model; says which.
    """
    own = model.state_dict()
    missing = [n for n in own if n not in state and not n.endswith(COUNTERS)]
    unknown = [n for n in state if n not in own]
    other = [
        f"{n} {tuple(state[n].shape)} for {tuple(t.shape)}"
        for n, t in own.items()
        if n in state and state[n].shape != t.shape
    ]
    told = [
        f"{what} {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for what, names in (("it lacks", missing), ("it has besides", unknown), ("of another shape are", other))
        if names
    ]
    if told:
        raise SaveError(
            f"{where} does not fit a {type(model).__name__}: {'; '.join(told)}; name the architecture that it is of, "
            "and the arguments it was made with"
        )
    model.load_state_dict(dict(state), strict=False)  # what may be missing are counters
