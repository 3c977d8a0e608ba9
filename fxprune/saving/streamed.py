"""`prune_folder`: a model on disk that need not fit into memory, pruned from one folder into another.

The model's class is built with empty parameters, and these are then tensors in its safetensors files, read where they
are used.  What follows is `fxprune.prune` as it is, proof included; what it cuts goes to a temporary file beside the
result, and from there into shards.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from fxprune.errors import SaveError
from fxprune.saving import stock
from fxprune.saving.adopted import DTYPES
from fxprune.saving.files import require_data
from fxprune.saving.header import HEADER
from fxprune.saving.restore import all_tensors
from fxprune.scoring.mapped import Pages, mapped, tensor_in

SHARD = "500MB"  # a shard is in memory while it is written


@contextlib.contextmanager
def opened(
    directory: Path, model: nn.Module | Callable[[], nn.Module] | None = None
) -> Iterator[tuple[nn.Module, Pages]]:
    """Within, the model of a folder, its tensors in the folder's files; what is written to them is lost.

    Args:
        directory: of a diffusers model, or any with safetensors files for `model`.
        model: a module of the folder's class, its parameters on the meta device or not, or a callable that makes one;
            None: it is built from the folder's config.

    Raises:
        SaveError: no model can be built, or its tensors are not those of the files.
    """
    if not directory.is_dir():
        raise SaveError(f"{directory} is no folder; pass one with a model's safetensors files")
    require_data(directory)
    if (directory / HEADER).is_file():
        raise SaveError(f"{directory} was written by fxprune.save; fxprune.load it and prune that")
    with Pages() as pages:
        pages.read_ahead(sorted(directory.glob("*.safetensors")))  # the disk works while the model is built and traced
        net = _built(directory, model)
        _give(net, _tensors(directory, pages), directory)
        yield net.eval(), pages


def _built(directory: Path, model: nn.Module | Callable[[], nn.Module] | None) -> nn.Module:
    if model is None:
        return stock.empty_model(directory)
    with stock.empty_parameters():
        net = model if isinstance(model, nn.Module) else model()
    if not isinstance(net, nn.Module):
        raise SaveError(f"model= gave a {type(net).__name__}; pass a module, or a callable that returns one")
    return net


def _tensors(directory: Path, pages: Pages) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise SaveError(f"{directory} holds no *.safetensors; save the model with save_pretrained(DIR) first")
    found: dict[str, torch.Tensor] = {}
    for path in files:
        held = mapped(path, pages)
        size = int.from_bytes(held[:8], "little")
        try:
            header = json.loads(held[8 : 8 + size].decode("utf-8"))
            for name, info in header.items():
                if name == "__metadata__":
                    continue
                if name in found:
                    raise SaveError(f"{path} holds {name!r:.80}, and so does another file of {directory}")
                start, shape = int(info["data_offsets"][0]), tuple(map(int, info["shape"]))
                found[name] = tensor_in(held, DTYPES[info["dtype"]], shape, 8 + size + start)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as e:
            raise SaveError(f"{path} is damaged, or of a kind that is not known: {type(e).__name__}: {e!s:.200}") from e
    return found


def _give(net: nn.Module, held: dict[str, torch.Tensor], directory: Path) -> None:
    """Make the tensors those of the model; names of one tensor share it again."""
    named, persistent = all_tensors(net), net.state_dict(keep_vars=True)
    if unknown := sorted(held.keys() - named.keys()):
        raise SaveError(f"{directory} holds {unknown[0]!r:.80}, which the {type(net).__name__} lacks: pass its model=")
    places: dict[int, list[str]] = {}
    for name, tensor in named.items():
        places.setdefault(id(tensor), []).append(name)
    for names in places.values():
        own = named[names[0]]
        value = next((held[n] for n in names if n in held), None)
        if value is None:
            if own.is_meta or any(n in persistent for n in names):
                raise SaveError(f"{directory} lacks {names[0]!r:.80} of the {type(net).__name__}: pass its model=")
            continue
        if value.shape != own.shape:
            raise SaveError(f"{names[0]} is {tuple(value.shape)} in {directory}, and {tuple(own.shape)} in the model")
        made = nn.Parameter(value, requires_grad=value.is_floating_point()) if isinstance(own, nn.Parameter) else value
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(owner), leaf, made)
