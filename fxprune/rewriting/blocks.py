"""Take the modules of some blocks out of a model, and put a `Skip` in the place of each.

A module whose result is the stream passes an input on.  One whose result the block would have added gives zeros of
their own shape.  What lies before that passes its input on where the shape allows it.  Shapes come from two runs on the
example inputs: of the model as it was, and of the new one, in which each `Skip` settles when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fxprune.errors import RewriteError, VerifyError
from fxprune.graph.blocks import Block, Cut, cut_of, inside, modules_of
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.graph.modules import Inputs, evaluating, same_draws
from fxprune.graph.packing import called, copied
from fxprune.graph.rules.op import shape_of
from fxprune.rewriting.skip import Answer, Key, Passed, Skip, Zeros, plain_attributes, put

Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True)
class Seen:
    """A module's first call: the shapes of its tensor arguments, and what it gave."""

    inputs: Mapping[Key, Shape]
    output: Any


@dataclass(frozen=True)
class Leaf:
    """A tensor that a module gave: its new shape and type; `stream` is the argument that it equals, `last` says that
    the block would have added it."""

    shape: Shape
    dtype: torch.dtype
    stream: Key | None
    last: bool


def take_out(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, names: Sequence[str], keep: Bools, run: bool = True
) -> tuple[str, ...]:
    """Put a `Skip` in the place of each module that goes with some blocks.

    Args:
        model: the model as it was.
        small: its copy with fewer channels, which changes.
        graph: the model's whole graph.
        names: the blocks.
        keep: the components that stay.
        run: settle what each gives; otherwise they are never called.

    Returns:
        Paths of the modules.

    Raises:
        VerifyError: where the model does not run without them.
    """
    blocks = [b for b in graph.blocks if b.name in names]
    paths = modules_of(graph.traced, blocks)
    if not run:
        for path in paths:
            put(small, path, Skip(None, (), plain_attributes(small.get_submodule(path))))
        return paths
    seen = _watched(model, paths, graph.traced.example)
    plans = {p: _leaves(graph, blocks, cut_of(graph.traced, blocks), paths, p, seen[p], keep) for p in paths}
    settling = {p: _Settling(plans[p], plain_attributes(small.get_submodule(p))) for p in paths}
    for path, module in settling.items():
        put(small, path, module)
    try:
        _run(small, graph.traced.example)
    except Exception as e:
        raise VerifyError(f"{type(small).__name__} does not run without its blocks: {type(e).__name__}: {e}") from e
    for path, module in settling.items():
        if small.get_submodule(path) is module:
            put(small, path, module.settled())
    return paths


def _run(model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad(), evaluating(model), same_draws():
        called(model, copied(inputs))


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Key, torch.Tensor]]:
    given: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
    yield from ((k, v) for k, v in given if isinstance(v, torch.Tensor))


def _watched(model: nn.Module, paths: Sequence[str], inputs: Inputs) -> dict[str, Seen]:
    """What each module took and gave when it was first called."""
    seen: dict[str, Seen] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            shapes = {k: tuple(v.shape) for k, v in _tensors(args, kwargs)}
            seen.setdefault(path, Seen(shapes, output))

        return hook

    handles = [model.get_submodule(p).register_forward_hook(watch(p), with_kwargs=True) for p in paths]
    try:
        _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [p for p in paths if p not in seen]:
        raise VerifyError(f"{missing[0]} is not called, but what it computes is used: it cannot be taken out")
    return seen


# ---- what a module has to give -------------------------------------------------------------------------------------


def _leaves(
    graph: ChannelGraph, blocks: Sequence[Block], after: Cut, paths: Sequence[str], path: str, seen: Seen, keep: Bools
) -> Any:
    """The module's output with a `Leaf` for every tensor."""
    exits = _exits(graph, path)
    inputs = dict(seen.inputs)
    adds = {b.node for b in blocks}

    def leaf(x: torch.Tensor) -> Leaf:
        shape = tuple(x.shape)
        node = next((n for n in exits if shape_of(n) == shape), None)
        if node is None:
            return Leaf(shape, x.dtype, None, last=False)
        exits.remove(node)
        labels = graph.env[node]
        new = tuple(graph.kept(axis, keep, s) for axis, s in zip(labels, shape, strict=True))
        stream = None
        if after.resolve(node) in after.live:
            stream = next((k for k, s in inputs.items() if s == shape), None)
            inputs.pop(stream, None)  # type: ignore[arg-type]
        return Leaf(new, x.dtype, stream, _added(node, adds, paths))

    return _mapped(seen.output, leaf, path)


def _mapped(output: Any, leaf: Callable[[torch.Tensor], Any], path: str) -> Any:
    if isinstance(output, torch.Tensor):
        return leaf(output)
    if output is None:
        return None
    if type(output) in (tuple, list):
        return tuple(_mapped(v, leaf, path) for v in output)
    raise VerifyError(f"{path} gives a {type(output).__name__}: it cannot be taken out")


def _exits(graph: ChannelGraph, path: str) -> list[fx.Node]:
    """The tensors made in a module that are used outside, or are the model's outputs."""
    nodes = [n for n in graph.traced.graph.nodes if any(inside(p, path) for p in n.meta.get("fxprune_calls", ()))]
    within = set(nodes)
    outputs = {o for o in graph.traced.outputs if isinstance(o, fx.Node)}
    used = (n for n in nodes if n in outputs or any(u not in within for u in n.users))
    return [n for n in used if isinstance(n.meta.get("val"), torch.Tensor)]


def _added(node: fx.Node, adds: set[str], paths: Sequence[str]) -> bool:
    """Whether a value comes to one of the additions without another module in between that was taken out."""
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if user.name in adds:
                return True
            calls = user.meta.get("fxprune_calls", ())
            if user not in seen and not any(inside(c, p) for c in calls for p in paths):
                seen.add(user)
                stack.append(user)
    return False


# ---- settling ------------------------------------------------------------------------------------------------------


class _Settling(nn.Module):
    """Becomes a `Skip` when it is called."""

    def __init__(self, leaves: Any, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(attributes)
        self._leaves, self._attributes = leaves, attributes
        self._skip: Skip | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._skip is None:
            sizes: list[int] = []
            answer = _answer(self._leaves, dict(_tensors(args, kwargs)), sizes)
            self._skip = Skip(answer, tuple(sizes), self._attributes)
        return self._skip.forward(*args, **kwargs)

    def settled(self) -> Skip:
        """The `Skip` that stays; one that was never called gives nothing."""
        return Skip(None, (), self._attributes) if self._skip is None else self._skip


def _answer(leaf: Any, inputs: Mapping[Key, torch.Tensor], sizes: list[int]) -> Answer:
    if isinstance(leaf, tuple):
        return tuple(_answer(x, inputs, sizes) for x in leaf)
    if leaf is None:
        return None
    if leaf.stream is not None:
        return Passed(leaf.stream)
    same = [k for k, x in inputs.items() if x.dtype == leaf.dtype]
    if not same:
        raise RewriteError(f"it gives {leaf.dtype}, and takes no tensor of that type")
    key = max(same, key=lambda k: (tuple(inputs[k].shape) == leaf.shape, inputs[k].dim() == len(leaf.shape)))
    x = inputs[key]
    if not leaf.last and tuple(x.shape) == leaf.shape:
        return Passed(key)
    sizes += [_rule(size, x, d) for d, size in enumerate(leaf.shape)]
    return Zeros(key, len(sizes) - len(leaf.shape), len(leaf.shape))


def _rule(size: int, x: torch.Tensor, d: int) -> int:
    """The rule for one size: a share of the input's where it fits (a stride), a constant otherwise."""
    have = x.shape[d] if d < x.dim() else 0
    if not 0 < size <= have:
        return size
    share = round(have / size)
    return -share if -(have // -share) == size and (share == 1 or d > 1) else size
