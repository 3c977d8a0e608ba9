"""Tables that a constructor computes anew, such as positions: they say which channels have to stay.

A buffer that is not saved with the weights is the constructor's own in a stock model.  Where a narrower one holds
columns of the wider one (a sin-cos table of half the width is every second column), keeping just these channels is
exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.stock.oracle import Refusal

NEAR = 1e-6  # of a table's largest number: columns that are equal


def computed(net: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that are not saved with the weights."""
    saved = net.state_dict(keep_vars=True)
    return {name: t for name, t in net.named_buffers() if name not in saved}


def forced(graph: ChannelGraph, net: nn.Module, made: nn.Module) -> dict[int, Ints] | Refusal:
    """Group -> the channels that have to stay, ascending, for what a constructor computes anew in `made`."""
    out: dict[int, Ints] = {}
    new = computed(made)
    for name, old in computed(net).items():
        if name not in new or name not in graph.tensors or new[name].shape == old.shape:
            continue
        narrower = [d for d, (a, b) in enumerate(zip(old.shape, new[name].shape, strict=False)) if a != b]
        if len(narrower) != 1 or old.dim() != new[name].dim():
            return Refusal(f"the constructor computes {name} anew, in another shape")
        kept = _columns(old, new[name], d := narrower[0])
        if kept is None:
            widths = f"{name}[{d}] becomes {new[name].shape[d]} of {old.shape[d]}"
            return Refusal(f"{widths}, computed anew by the constructor: no columns of the old table make the new one")
        axis = graph.tensors[name][d]
        at = [] if axis is None else [graph.channel_of.get(int(c)) for c in graph.component[axis][kept]]
        for g in {place[0] for place in at if place is not None}:
            out[g] = np.unique([place[1] for place in at if place is not None and place[0] == g])
    return out


def _columns(old: torch.Tensor, new: torch.Tensor, d: int) -> Ints | None:
    """Positions of `old` along an axis, ascending, that make `new`; None where there are none."""
    wide, narrow = (t.detach().double().cpu().movedim(d, 0).flatten(1) for t in (old, new))
    if wide.shape[1] != narrow.shape[1]:
        return None
    limit = NEAR * max(float(wide.abs().max()), 1e-30) if wide.numel() else 0.0
    found: list[int] = []
    for column in narrow:
        equal = ((wide - column).abs().amax(1) <= limit).nonzero().flatten().tolist()
        nxt = next((i for i in equal if not found or i > found[-1]), None)
        if nxt is None:
            return None
        found.append(nxt)
    return np.array(found, np.int64)
