"""Tensors without the positions that go, and the factor that keeps an attention's temperature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools, Ints
from fxprune.graph.temperature import temperature_rows
from fxprune.scoring.mapped import scratch

AT_ONCE = 1 << 20  # bytes that are cut at a time, which stay in a core's cache


def kept_positions(graph: ChannelGraph, name: str, keep: Bools) -> list[torch.Tensor | None]:
    """For every axis of a tensor the positions that stay; None where all do."""
    out: list[torch.Tensor | None] = []
    for axis in graph.tensors[name]:
        stays = None if axis is None else keep[graph.component[axis]]
        out.append(None if stays is None or stays.all() else torch.from_numpy(np.flatnonzero(stays)))
    return out


def cut_tensors(model: nn.Module, graph: ChannelGraph, keep: Bools) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every parameter and buffer that loses positions, with what replaces it (a copy of the model takes these).

    Where what is cut goes to a file (`fxprune.scoring.mapped`), all of them go there.
    """
    out = []
    if (place := scratch()) is not None:
        place.begin()
    for name in graph.tensors:
        positions = kept_positions(graph, name, keep)
        if any(p is not None for p in positions) or place is not None:
            old = _get(model, name)
            out.append((old, _cut(old, positions)))
    return out


def _get(model: nn.Module, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _cut(tensor: torch.Tensor, positions: list[torch.Tensor | None]) -> torch.Tensor:
    data, place = tensor.detach(), scratch()
    index = {d: p for d, p in enumerate(positions) if p is not None}
    if type(data) is torch.Tensor and data.device.type == "cpu" and data.is_contiguous() and data.itemsize in BITS:
        shape = tuple(len(index[d]) if d in index else n for d, n in enumerate(data.shape))
        pieces = _pieces(data, index)
        data = _filled(data.new_empty(shape), pieces) if place is None else place.written(pieces, data.dtype, shape)
    else:
        for d, p in index.items():
            data = data.index_select(d, p.to(data.device))
        if tensor.dim() in (4, 5) and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=_last(tensor)):
            data = data.contiguous(memory_format=_last(tensor))
        data = data if place is None else place.moved(data)
    if not isinstance(tensor, nn.Parameter):
        return data
    return nn.Parameter(data, requires_grad=tensor.requires_grad)


# A number of that many bytes is moved as an integer, by numpy: three times as fast as `index_select` of half precision.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _pieces(data: torch.Tensor, index: Mapping[int, torch.Tensor]) -> Iterator[npt.NDArray[Any]]:
    """What stays, as integers, some rows (positions of axis 0) at a time, so that no more than these is in memory."""
    held = data.view(BITS[data.itemsize]).numpy()
    if not held.ndim:
        yield held
        return
    rows = index[0].numpy() if 0 in index else None
    count = len(held) if rows is None else len(rows)
    at_once = max(1, AT_ONCE * len(held) // max(1, held.nbytes))
    for start in range(0, count, at_once):
        stop = min(count, start + at_once)
        piece = held[start:stop] if rows is None else _rows(held, rows[start:stop])
        for d in sorted(index.keys() - {0}):
            piece = np.take(piece, index[d].numpy(), d)
        yield piece


def _rows(held: npt.NDArray[Any], rows: Ints) -> npt.NDArray[Any]:
    """Rows in ascending order: as they lie, where none between them goes."""
    first, last = int(rows[0]), int(rows[-1])
    return held[first : last + 1] if last - first + 1 == len(rows) else np.take(held, rows, 0)


def _filled(out: torch.Tensor, pieces: Iterator[npt.NDArray[Any]]) -> torch.Tensor:
    into, start = out.view(BITS[out.itemsize]).numpy(), 0
    for piece in pieces:
        if not into.ndim:
            into[...] = piece
            break
        into[start : start + len(piece)] = piece
        start += len(piece)
    return out


def _last(tensor: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d


FOLDED = "_fxprune_folded"


@dataclass(frozen=True)
class Fold:
    """Rows of parameters to be multiplied, after cutting."""

    names: tuple[str, ...]
    rows: torch.Tensor
    factor: float

    def apply(self, model: nn.Module) -> None:
        """Multiply; the model remembers which rows of which parameters hold a factor (a proof puts numbers in place of
        zeros, and what is carried over to the model takes the factor, too)."""
        for name in self.names:
            model.__dict__.setdefault(FOLDED, {}).setdefault(name, []).append((self.rows, self.factor))
            with torch.no_grad():
                tensor = _get(model, name)
                if tensor.is_meta:
                    continue
                if tensor.dim():
                    tensor[self.rows.to(tensor.device)] *= self.factor
                else:
                    tensor *= self.factor


def folded(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose first axis is that of a parameter of a pruned model, with the factors that this one holds."""
    for rows, factor in model.__dict__.get(FOLDED, {}).get(name, ()):
        scale = torch.ones(tensor.shape[0], dtype=tensor.dtype, device=tensor.device)
        scale[rows.to(tensor.device)] *= factor
        tensor = tensor * scale.view(-1, *[1] * (tensor.dim() - 1))
    return tensor


def cut(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor | None]) -> torch.Tensor:
    """A tensor with the positions that stay on some of its axes (None: all)."""
    for d, stay in positions.items():
        if stay is not None:
            tensor = tensor.index_select(d, stay.to(tensor.device))
    return tensor


def fold_of(graph: ChannelGraph, keep: Bools, names: tuple[str, ...], rows: Ints | None, factor: float) -> Fold:
    """Rows as they were before pruning (None: all), multiplied where they stay; the tensors share their first axis."""
    shape = graph.shapes[names[0]]
    axis = graph.tensors[names[0]][0] if shape else None
    stays = np.ones((*shape, 1)[0], bool) if axis is None else keep[graph.component[axis]]
    picked = np.flatnonzero(stays if rows is None else np.isin(np.flatnonzero(stays), rows))
    if rows is None:
        picked = np.arange(len(picked))
    return Fold(names, torch.from_numpy(picked), factor)


def temperature_folds(graph: ChannelGraph, keep: Bools) -> list[Fold]:
    out: dict[tuple[str, bytes], Fold] = {}
    for attended in graph.facts.attended:
        old = len(attended.axis)
        new = graph.kept(attended.axis, keep, old)
        if new == old:
            continue
        factor = (new / old) ** 0.5
        mode = graph.mode_of(attended.node)
        found = temperature_rows(mode, graph.parameters, graph.facts.attended, attended.node)
        assert found is not None  # analyse() froze the axis otherwise
        folds = [fold_of(graph, keep, (r.tensor,), r.rows, factor) for r in found]
        out.update({(fold.names[0], fold.rows.numpy().tobytes()): fold for fold in folds})
    return list(out.values())
