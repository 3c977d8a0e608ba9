"""Models whose outputs another one reads (ControlNets, T2I-Adapters), cut so that these fit it once it is pruned.

The reader is traced with those inputs: they are coupled to what they are added to, so the plan says which of their
channels stay.  Where the side model makes an output in rows of weights that nothing else reads (the zero convolutions
of a ControlNet), these rows go; where it reads on in what it puts out, a hook picks the channels, and it stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.copies import deep_copy
from fxprune.graph.labels import Ints
from fxprune.graph.modules import Inputs, evaluating, same_draws
from fxprune.graph.outputs import Outputs
from fxprune.graph.packing import copied, packed
from fxprune.planning.plan import Plan
from fxprune.planning.translation import kept
from fxprune.rewriting.attributes import sync_layers
from fxprune.rewriting.slicing import cut


@dataclass(frozen=True)
class Fed:
    """An output of the side model that the pruned model reads: its number among all, and what stays on its axes."""

    number: int
    positions: Mapping[int, Tensor | None]


@dataclass(frozen=True, eq=False)
class Reader:
    """The model that is pruned: with its plan and the graph that this was made for."""

    model: nn.Module
    graph: ChannelGraph
    plan: Plan
    inputs: Inputs


def fitted(side: nn.Module, inputs: Inputs, feeds: Mapping[str, str], reader: Reader) -> nn.Module:
    """The side model for the pruned reader.

    Args:
        inputs: of the side model.
        feeds: input of the reader -> the output of the side model that it takes ("" for all that it returns).

    Raises:
        InputsError: a name means nothing, or an output does not fit the reader.
    """
    out = _ran(side, inputs)
    leaves = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    given = {name: _output(out, field, side) for name, field in feeds.items()}
    fed = list(_fed(reader, given, leaves))
    rows = list(_rows(side, inputs, fed, len(leaves)))
    small = deep_copy(side, [(old, _parameter(old, positions)) for old, positions in rows])
    sync_layers(small)
    done = {f.number for f in fed if _is_cut(small, inputs, f)}
    if left := [f for f in fed if f.number not in done]:
        small.register_forward_hook(_Picked(tuple(left)))
    return small


def _ran(side: nn.Module, inputs: Inputs) -> Any:
    try:
        with evaluating(side), torch.no_grad(), same_draws():
            return side(*inputs[0], **inputs[1])
    except Exception as e:
        raise InputsError(
            f"this {type(side).__name__} does not run on the inputs that were made for it ({type(e).__name__}: "
            f"{e!s:.200}): pass inputs="
        ) from e


def _output(out: Any, name: str, side: nn.Module) -> Any:
    if not name:
        return out
    held = out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)
    if held is None:
        raise InputsError(f"{type(side).__name__} gives no output {name!r}; pass feeds= with one that it does")
    return held


def _fed(reader: Reader, given: Mapping[str, Any], leaves: list[Tensor]) -> Iterator[Fed]:
    """What stays of each output."""
    args, kwargs = reader.inputs
    whole = copied(packed((args, {**kwargs, **given})))
    paths, _ = pytree.tree_flatten_with_path(whole)
    tensors = {id(t): n for n, t in enumerate(leaves)}
    order = [tensors[id(t)] for name in {**kwargs, **given} if name in given for t in pytree.tree_leaves(given[name])]
    places = [i for i, (path, _) in enumerate(paths) if any(getattr(k, "key", None) in given for k in path[:2])]
    graph = analyse(reader.model, whole, reader.graph.prefer, Outputs(None, ()), free=places)
    keep = kept(reader.plan, reader.graph, graph, lambda name: name)
    nodes = {n.name: n for n in graph.traced.graph.nodes}
    for place, number in zip(places, order, strict=True):
        axes = graph.env[nodes[graph.traced.inputs[place]]]
        stays = (None if a is None else keep[graph.component[a]] for a in axes)
        positions = {
            d: torch.from_numpy(np.flatnonzero(s)) for d, s in enumerate(stays) if s is not None and not s.all()
        }
        yield Fed(number, positions)


# ---- rows of weights ---------------------------------------------------------------------------------------------


def _rows(side: nn.Module, inputs: Inputs, fed: list[Fed], outputs: int) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
    """The tensors that make the outputs, and what stays of them, as far as nothing else reads what they make."""
    graph = analyse(side, copied(packed(inputs)))
    nodes = [n for n in graph.traced.outputs if isinstance(n, fx.Node)]
    if len(nodes) != outputs:
        return
    named = {**dict(side.named_buffers()), **dict(side.named_parameters())}
    piece = _pieces(graph)
    read = [graph.env[n][axis] for pairs in graph.facts.reads.values() for n, axis in pairs]
    read += [graph.env[n][d] for n in graph.env for d in graph.facts.statistics.get(n.name, ())]
    busy = set(np.unique(np.concatenate([piece[a] for a in read if a is not None])).tolist()) if read else set()
    for f in fed:
        for d, stay in f.positions.items():
            axis = graph.env[nodes[f.number]][d]
            others = [a for n in nodes if n is not nodes[f.number] for a in graph.env[n] if a is not None]
            shared = busy | {int(p) for a in others for p in piece[a]}
            if stay is None or axis is None or shared & set(piece[axis].tolist()):
                continue
            goes = np.setdiff1d(piece[axis], piece[axis[stay.numpy()]])
            for name, axes in graph.tensors.items():
                cuts = {k: a for k, a in enumerate(axes) if a is not None and np.isin(piece[a], goes).any()}
                if cuts:
                    yield named[name], {k: _left(piece[a], goes) for k, a in cuts.items()}


def _left(pieces: Ints, goes: Ints) -> Tensor:
    return torch.from_numpy(np.flatnonzero(~np.isin(pieces, goes)))


def _pieces(graph: ChannelGraph) -> Ints:
    """For every label the set of labels that it is equal to, whether or not that can go."""
    size = graph.space.size
    a = np.concatenate([e[0] for e in graph.space.edges] or [np.zeros(0, np.int64)])
    b = np.concatenate([e[1] for e in graph.space.edges] or [np.zeros(0, np.int64)])
    _, out = connected_components(coo_matrix((np.ones(len(a)), (a, b)), shape=(size, size)), directed=False)
    return np.asarray(out, np.int64)


def _parameter(old: Tensor, positions: Mapping[int, Tensor]) -> Tensor:
    data = cut(old.detach(), positions)
    return nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data


def _is_cut(side: nn.Module, inputs: Inputs, fed: Fed) -> bool:
    leaves = [t for t in pytree.tree_leaves(_ran(side, inputs)) if isinstance(t, Tensor)]
    return all(s is None or leaves[fed.number].shape[d] == len(s) for d, s in fed.positions.items())


@dataclass(frozen=True)
class _Picked:
    """A forward hook that leaves of some outputs the channels that stay."""

    fed: tuple[Fed, ...]

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        leaves, spec = pytree.tree_flatten(out)
        number = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for f in self.fed:
            leaves[number[f.number]] = cut(leaves[number[f.number]], f.positions)
        return pytree.tree_unflatten(leaves, spec)
