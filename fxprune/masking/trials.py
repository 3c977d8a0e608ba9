"""Models with other numbers for a moment, so that a comparison says more than their own weights let it.

in_float64      rounding errors shrink by nine digits, a wrong result stays wrong
zeros_filled    what is all zeros (a head just made) multiplies away what comes before it; with numbers it does not
rounded_anew    every weight off by its last bit: how far the outputs move is the model's own rounding noise
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.rewriting.slicing import FOLDED, kept_positions, temperature_folds
from fxprune.scoring.storage import LARGE


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


class _AtUse(TorchFunctionMode):
    """Within, functions that are given a parameter take another number in its place, made for that call alone.

    A second set of weights as large as the first is never in memory.

    Args:
        models: whose floating parameters these are.
        of: parameter, its number among them -> what takes its place.
        dtype: what parameters say their type is; None: their own.
    """

    def __init__(
        self, models: Iterable[nn.Module], of: Callable[[Tensor, int], Tensor], dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        every = itertools.chain.from_iterable(m.parameters() for m in models)
        floating = {id(p): p for p in every if p.is_floating_point()}
        self.number = {key: i for i, key in enumerate(floating)}
        # A graph that is run reads the detached: known by their memory.
        self.memory = {(p.data_ptr(), p.shape): i for i, p in enumerate(floating.values()) if p.numel()}
        self.of, self.dtype = of, dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _TYPE and self.dtype is not None and self._known(args[0]) is not None:
            return self.dtype
        if (getattr(func, "__name__", "") == "__get__" and func not in _VALUES) or func in _SAME:
            return func(*args, **(kwargs or {}))
        args, kwargs = pytree.tree_map_only(Tensor, self._changed, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _known(self, t: Any) -> int | None:
        if not isinstance(t, Tensor):
            return None
        found = self.number.get(id(t))
        return self.memory.get((t.data_ptr(), t.shape)) if found is None and t.is_leaf else found

    def _changed(self, t: Tensor) -> Tensor:
        number = self._known(t)
        return t if number is None else self.of(t.detach(), number)


_TYPE = (Tensor.dtype.__get__,)  # type: ignore[attr-defined]
_VALUES = tuple(getattr(Tensor, name).__get__ for name in ("data", "T", "mT", "H", "mH", "real"))
# A graph that is run starts from detached parameters, whose memory is the same; the others read no numbers.
_SAME = (Tensor.detach, Tensor.data_ptr, Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous)


def _large(models: Iterable[nn.Module]) -> bool:
    return sum(p.numel() * p.element_size() for m in models for p in m.parameters()) > LARGE


@contextlib.contextmanager
def in_float64(*models: nn.Module) -> Iterator[None]:
    """Within, the models' tensors are float64; of large models each while it is used."""
    with contextlib.ExitStack() as stack:
        held = _tensors(*models)
        if _large(models):
            stack.enter_context(_AtUse(models, lambda p, _: p.double(), torch.float64))
            held = [t for t in held if not isinstance(t, nn.Parameter)]
        stack.enter_context(_holding((t, t.data.double()) for t in held))
        yield


@contextlib.contextmanager
def rounded_anew(model: nn.Module) -> Iterator[None]:
    """Within, every weight is one unit in its last place up or down."""

    def moved(t: Tensor, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        sign = torch.randint(0, 2, t.shape, generator=generator).to(device=t.device, dtype=t.dtype) * 2 - 1
        return t * (1 + sign * torch.finfo(t.dtype).eps)

    if _large([model]):
        with _AtUse([model], moved):
            yield
        return
    with _holding((t, moved(t.data, i)) for i, t in enumerate(_tensors(model))):
        yield


def zero_parameters(
    model: nn.Module, graph: ChannelGraph, small: nn.Module | None = None, keep: Bools | None = None
) -> list[str]:
    """Parameters of the graph that are zero everywhere, in a pruned copy too, and that it holds without a factor."""
    theirs = {} if small is None else dict(small.named_parameters())
    named = dict(model.named_parameters())
    folded = set() if keep is None else {n for fold in temperature_folds(graph, keep) for n in fold.names}
    folded |= set() if small is None else set(small.__dict__.get(FOLDED, ()))
    zero = (n for n in graph.tensors if n in named and n not in folded and _is_zero(named[n].detach()))
    return [n for n in zero if n not in theirs or _is_zero(theirs[n].detach())]


def _is_zero(tensor: Tensor) -> bool:
    """Most tensors are told by their first row: `any` reads the whole, and slowly."""
    begins = type(tensor) is Tensor and tensor.dim() and len(tensor) > 1 and tensor[:1].any()
    return not (begins or tensor.any())


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
