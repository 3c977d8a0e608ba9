"""A checkpoint goes on on another number of processes than wrote it.

weights, optimizer, averages    as they are: all of them are in one file, or torch.distributed.checkpoint shares the
                                shards out anew
masks, history                  are the same in every process
batches kept for scoring        parts of one batch: put together, and taken apart anew
place in the data               where the samples that were taken end
running statistics, draws       process r goes on with those of process r, modulo how many there were; one that was
                                not there has random numbers of its own
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.errors import SaveError
from fxprune.scoring.batches import batch_size, take, texts_of
from fxprune.scoring.randomness import rng_state, same_start


def regrouped(states: Sequence[Mapping[str, Any]], rank: int, number: int, path: Path) -> dict[str, Any]:
    """What process `rank` of `number` goes on with, of the states of all processes that wrote a checkpoint.

    Raises:
        SaveError: it is too old; batches that it holds cannot be put together, or have too few samples.
    """
    before = len(states)
    if any("step" not in state["stream"] for state in states):
        raise SaveError(
            f"{path} was written by {before} processes, and now there are {number}; it is of a version that goes on "
            "on as many only: start as many"
        )
    own = dict(states[rank % before])
    if rank >= before:
        own["rng"] = _fresh(rank)
    if own["pruner"]:
        kept = zip(*(state["pruner"]["batches"] for state in states), strict=True)
        own["pruner"] = {**own["pruner"], "batches": [_part(parts, rank, number, before, path) for parts in kept]}
    return own


def _fresh(rank: int) -> dict[str, Any]:
    """Random numbers that no other process has."""
    with same_start():
        torch.manual_seed(rank)
        np.random.seed(rank)
        return rng_state()


def _part(parts: Sequence[Any], rank: int, number: int, before: int, path: Path) -> Any:
    whole = _joined(parts)
    size = 0 if whole is None else batch_size(whole)
    if size < number:
        why = "hold no samples that could be put together" if not size else f"are {size} samples"
        raise SaveError(
            f"the batches for scoring in {path}, which was written by {before} processes, {why}: they cannot be split "
            f"over {number}; go on with {before} processes"
        )
    return take(whole, range(size * rank // number, size * (rank + 1) // number))


def _joined(parts: Sequence[Any]) -> Any:
    """One batch made of its parts, in their order; None where they do not fit each other."""
    sizes = [batch_size(part) for part in parts]
    flat = [_flat(part, size) for part, size in zip(parts, sizes, strict=True)]
    if not all(sizes) or any(spec != flat[0][1] for _, spec in flat):
        return None
    found = [_together(leaves, sizes) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)]
    return None if any(leaf is _APART for leaf in found) else pytree.tree_unflatten(found, flat[0][1])


def _flat(batch: Any, size: int) -> tuple[list[Any], pytree.TreeSpec]:
    return pytree.tree_flatten(batch, is_leaf=lambda x: texts_of(x, size))


_APART = object()


def _together(leaves: Sequence[Any], sizes: Sequence[int]) -> Any:
    """One leaf of a batch, of those of its parts: joined where it has samples, else what is the same in all."""
    pairs = list(zip(leaves, sizes, strict=True))
    if all(isinstance(x, Tensor) and x.dim() and len(x) == n for x, n in pairs):
        alike = len({(x.shape[1:], x.dtype) for x in leaves}) == 1
        return torch.cat(list(leaves)) if alike else _APART
    if all(texts_of(x, n) for x, n in pairs):
        return [text for x in leaves for text in x]
    return leaves[0] if all(_same(x, leaves[0]) for x in leaves) else _APART


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (Tensor, np.ndarray)) or isinstance(b, (Tensor, np.ndarray)):
        alike = type(a) is type(b) and a.shape == b.shape and a.dtype == b.dtype
        return alike and bool((a == b).all())
    return bool(a == b)
