"""Packed sequences (`pack_padded_sequence`) while a model is exported: the same with ops that export knows.

How many sequences are as long as each step is a value that Python reads, of the example inputs (see
`fxprune.graph.values`).  With it, packing is an index, a recurrent layer runs over each sequence alone, and unpacking
is an index, too.  Steps and sequences are no channels: all of these leave the features free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

PACK, _UNPACK = "_pack_padded_sequence", "_pad_packed_sequence"
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def steps_of(value: Any) -> list[int] | None:
    """How many sequences are as long as each step, where `value` is what a packed sequence keeps of that."""
    found: list[int] | None = getattr(value, "_fxprune_steps", None)
    return found


def marked(sizes: Tensor, steps: Sequence[int]) -> Tensor:
    """The tensor, known as what a packed sequence keeps."""
    sizes._fxprune_steps = list(steps)  # type: ignore[attr-defined]
    return sizes


def item(name: str, args: tuple[Any, ...]) -> int | None:
    """What `batch_sizes[k]` reads, or None for any other call."""
    if name != "__getitem__" or not isinstance(args[1], int) or (steps := steps_of(args[0])) is None:
        return None
    return steps[args[1]]


def stand_in(name: str, func: Callable[..., Any], args: tuple[Any, ...], note: Callable[[], Any]) -> Any:
    """What to call in place of an op on packed sequences; None for any other.

    Args:
        note: gives what was noted when a sequence was packed.
    """
    if name == PACK:
        return lambda x, lengths, batch_first: _pack(x, batch_first, note())
    if name == _UNPACK:
        return _unpack
    if name in _RECURRENT and len(args) > 1 and steps_of(args[1]) is not None:
        return lambda *given: _one_by_one(func, *given)
    return None


def _places(steps: Sequence[int]) -> list[tuple[int, int]]:
    """(step, sequence) of every row of a packed sequence."""
    return [(t, b) for t, n in enumerate(steps) for b in range(n)]


def _index(values: Sequence[Any], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)


def _pack(x: Tensor, batch_first: bool, steps: list[int]) -> tuple[Tensor, Tensor]:
    x = x.transpose(0, 1) if batch_first else x
    t, b = (_index(k, x) for k in zip(*_places(steps), strict=True))
    return x[t, b], marked(torch.tensor(steps), steps)


def _unpack(data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total: int) -> tuple[Tensor, Tensor]:
    steps = steps_of(sizes) or []
    row = {place: k for k, place in enumerate(_places(steps))}
    grid = [[row.get((t, b), -1) for b in range(steps[0])] for t in range(max(len(steps), int(total)))]
    rows = _index(grid, data)
    wide = (rows >= 0).view(*rows.shape, *[1] * (data.dim() - 1))
    out = torch.where(wide, data[rows.clamp_min(0)], padding)
    lengths = torch.tensor([sum(n > b for n in steps) for b in range(steps[0])])
    return out.transpose(0, 1) if batch_first else out, lengths


def _one_by_one(
    func: Callable[..., Any], data: Tensor, sizes: Tensor, state: Any, weights: Any, *options: Any
) -> tuple[Tensor, ...]:
    """A recurrent layer over each sequence alone, its outputs in the order of the packed sequence."""
    steps = steps_of(sizes) or []
    places = _places(steps)
    outputs, order, last = [], [], []
    for b in range(steps[0]):
        rows = [k for k, place in enumerate(places) if place[1] == b]
        own = [s[:, b : b + 1] for s in (state if isinstance(state, (tuple, list)) else [state])]
        x = data.index_select(0, _index(rows, data)).unsqueeze(1)
        y, *end = func(x, own if isinstance(state, (tuple, list)) else own[0], weights, *options, False)
        outputs.append(y.squeeze(1))
        order += rows
        last.append(end)
    back = sorted(range(len(order)), key=order.__getitem__)
    joined = torch.cat(outputs).index_select(0, _index(back, data))
    return joined, *(torch.cat(parts, 1) for parts in zip(*last, strict=True))
