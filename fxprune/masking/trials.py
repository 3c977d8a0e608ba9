"""Models with other numbers for a moment, so that a comparison says more than their own weights let it.

in_float64      rounding errors shrink by nine digits, a wrong result stays wrong
zeros_filled    what is all zeros (a head just made) multiplies away what comes before it; with numbers it does not
rounded_anew    every weight off by its last bit: how far the outputs move is the model's own rounding noise
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.rewriting.slicing import FOLDED, kept_positions, temperature_folds


def _tensors(*models: nn.Module) -> list[Tensor]:
    """Floating parameters and buffers, each once."""
    every = itertools.chain.from_iterable((*m.parameters(), *m.buffers()) for m in models)
    return list({id(t): t for t in every if t.is_floating_point()}.values())


@contextlib.contextmanager
def _holding(values: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within, tensors hold other data; afterwards their own again, the very same memory."""
    was: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor, data in values:
            was.append((tensor, tensor.data))
            tensor.data = data
        yield
    finally:
        for tensor, data in reversed(was):
            tensor.data = data


@contextlib.contextmanager
def in_float64(*models: nn.Module) -> Iterator[None]:
    """Within, the models' tensors are float64."""
    with _holding((t, t.data.double()) for t in _tensors(*models)):
        yield


@contextlib.contextmanager
def rounded_anew(model: nn.Module) -> Iterator[None]:
    """Within, every weight is one unit in its last place up or down."""
    generator = torch.Generator().manual_seed(0)

    def moved(t: Tensor) -> Tensor:
        sign = torch.randint(0, 2, t.shape, generator=generator).to(device=t.device, dtype=t.dtype) * 2 - 1
        return t.data * (1 + sign * torch.finfo(t.dtype).eps)

    with _holding((t, moved(t)) for t in _tensors(model)):
        yield


def zero_parameters(
    model: nn.Module, graph: ChannelGraph, small: nn.Module | None = None, keep: Bools | None = None
) -> list[str]:
    """Parameters of the graph that are zero everywhere, in a pruned copy too, and that it holds without a factor."""
    theirs = {} if small is None else dict(small.named_parameters())
    named = dict(model.named_parameters())
    folded = set() if keep is None else {n for fold in temperature_folds(graph, keep) for n in fold.names}
    folded |= set() if small is None else set(small.__dict__.get(FOLDED, ()))
    zero = (n for n in graph.tensors if n in named and n not in folded and not named[n].detach().any())
    return [n for n in zero if n not in theirs or not theirs[n].detach().any()]


@contextlib.contextmanager
def zeros_filled(
    names: Iterable[str],
    graph: ChannelGraph,
    model: nn.Module,
    small: nn.Module | None = None,
    keep: Bools | None = None,
) -> Iterator[None]:
    """Within, some parameters of a model hold random numbers, its pruned copy what stays of them."""
    generator, own = torch.Generator().manual_seed(0), dict(model.named_parameters())
    theirs = {} if small is None else dict(small.named_parameters())
    values: list[tuple[Tensor, Tensor]] = []
    for name in names:
        p = own[name]
        drawn = torch.randn(p.shape, generator=generator) / max(1, p[0].numel() if p.dim() > 1 else 100) ** 0.5
        values.append((p, drawn.to(device=p.device, dtype=p.dtype)))
        if name in theirs and keep is not None and theirs[name] is not p:
            values.append((theirs[name], _cut(values[-1][1], graph, name, keep)))
    with _holding(values):
        yield


def _cut(drawn: Tensor, graph: ChannelGraph, name: str, keep: Bools) -> Tensor:
    for d, kept in enumerate(kept_positions(graph, name, keep)):
        if kept is not None:
            drawn = drawn.index_select(d, kept.to(drawn.device))
    return drawn
