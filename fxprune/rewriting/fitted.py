"""A linear map in the place of blocks that were taken out: it adds to the stream what the blocks added, as well as a
linear map can.

    y = x + W x + b        nn.Linear on token streams, a convolution of size 1 on feature maps

It lives in the `Skip` of one module of the blocks: one that is called with the stream, and whose answer is the stream,
or is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.graph.blocks import Block
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.rewriting.skip import Key, Skip, argument, plain_attributes

CONVS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Fitted(Skip):
    """A `Skip` that adds a linear map of one of its inputs to the first tensor that it gives.

    Args:
        skip: what stands there without the map.
        block: name of the block whose addition the map's result goes into.
        key: position or name of the input that is the stream.
        fitted: the map.

    >>> from fxprune.rewriting.skip import Passed
    >>> layer = nn.Linear(2, 2)
    >>> x = torch.ones(3, 2)
    >>> bool((Fitted(Skip(Passed(0)), "mlp", 0, layer)(x) == x + layer(x)).all())
    True
    """

    def __init__(self, skip: Skip, block: str, key: Key, fitted: nn.Module) -> None:
        super().__init__(skip.answer, skip.sizes, plain_attributes(skip))
        self._block, self._key = block, key
        self.fitted = fitted

    @property
    def block(self) -> str:
        """The block whose addition the map's result goes into."""
        return self._block

    @property
    def key(self) -> Key:
        """The input that is the stream."""
        return self._key

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the `Skip` gives, and the map of the stream added to its first tensor."""
        out = super().forward(*args, **kwargs)
        more = self.fitted(argument(args, kwargs, self._key))
        return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more


def channel_axis(graph: ChannelGraph, block: Block) -> int | None:
    """The axis of a block's stream that its channels stand on; None where no linear layer works along it."""
    node = next(n for n in graph.traced.graph.nodes if n.name == block.stream)
    labels = graph.env.get(node)
    if not isinstance(labels, tuple):
        return None
    live = [d for d, a in enumerate(labels) if a is not None and graph.component[a].any()]
    rank = len(labels)
    axis = live[0] if len(live) == 1 else {2: 1, 3: 2, 4: 1}.get(rank) if not live else None
    return axis if axis == rank - 1 or (axis == 1 and rank in CONVS) else None


def layer_of(weight: Tensor, bias: Tensor, axis: int, rank: int) -> nn.Module:
    """The layer of a map of channels: weight (C, C), bias (C,), along an axis of values of so many axes."""
    size = len(bias)
    if axis == rank - 1:
        layer: Any = nn.Linear(size, size, device=weight.device, dtype=weight.dtype)
    else:
        layer = CONVS[rank](size, size, 1, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight.view(layer.weight.shape))
        layer.bias.copy_(bias)
    made: nn.Module = layer
    return made


def lines_of(
    small: nn.Module, graph: ChannelGraph, keep: Bools, gone: Collection[str]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Block, of those that are gone -> what the map in its place adds to the stream of the unpruned graph: nothing to
    channels that go."""
    blocks = {b.name: b for b in graph.blocks if b.name in gone}
    held = [m for m in small.modules() if isinstance(m, Fitted) and m.block in blocks]
    return {m.block: widened(graph, blocks[m.block], keep, m.fitted) for m in held}


def kept_positions(graph: ChannelGraph, block: Block, axis: int, keep: Bools) -> Tensor:
    """The positions of a stream's channels that stay."""
    node = next(n for n in graph.traced.graph.nodes if n.name == block.stream)
    labels = graph.env[node][axis]
    size = int(node.meta["val"].shape[axis])
    if labels is None:
        return torch.arange(size)
    return torch.from_numpy(keep[graph.component[labels]]).nonzero().flatten()


def widened(graph: ChannelGraph, block: Block, keep: Bools, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer on the channels that stay, as a map of all channels."""
    axis = channel_axis(graph, block)
    assert axis is not None
    at = kept_positions(graph, block, axis, keep)

    def line(x: Tensor) -> Tensor:
        index = at.to(x.device)
        return torch.zeros_like(x).index_copy(axis, index, layer(x.index_select(axis, index)))

    return line
