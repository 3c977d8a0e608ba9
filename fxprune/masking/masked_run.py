"""Run the traced graph with some channels masked.

A channel is gone when nothing reads it: the mask multiplies what every contraction reads, and norms take their
statistics over what stays (mean = sum m x / sum m).  With a mask of ones this is the model itself; with zeros it is the
model without these channels, which is what the dense model has to compute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import Inputs, same_draws
from fxprune.graph.regions import autocast_of, computed, in_full
from fxprune.graph.rules.op import op_name
from fxprune.graph.trace import last_uses
from fxprune.masking.statistics import (
    kept_pairs,
    masked_batch_norm,
    masked_extreme,
    masked_filter,
    masked_group_norm,
    masked_layer_norm,
    masked_mean,
    masked_observation,
    masked_range,
    masked_softmax,
    masked_spread,
)
from fxprune.planning.norms import NormChange

Numbers: TypeAlias = "Mapping[str, Mapping[int | str, Any]]"
Statistic: TypeAlias = "Callable[[MaskedRun, fx.Node, tuple[Any, ...], dict[str, Any]], Any]"


class MaskedRun:
    """Executes a channel graph on real tensors under a mask over components.

    Args:
        graph: of the model.
        model: where parameters and buffers are read from.
        mask: one number in [0, 1] a component; None runs the graph as it is.
        norms: new numbers of groups of group norms, as in a plan.
        blocks: block name -> what its contribution is multiplied by (a number, or a tensor of one); 0 takes it out.
        numbers: node -> numbers among its arguments, by position or name, that the mask changes.
        lines: block name -> what is added in place of its contribution, as a function of the stream.
        watch: names of nodes whose values are kept in `seen`.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        model: nn.Module,
        mask: Tensor | None = None,
        norms: Mapping[str, NormChange] | None = None,
        blocks: Mapping[str, float | Tensor] | None = None,
        numbers: Numbers | None = None,
        lines: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        watch: Collection[str] = (),
    ) -> None:
        self.graph, self.mask, self.norms, self.numbers = graph, mask, dict(norms or {}), numbers or {}
        self.added = {(b.node, b.branch): blocks[b.name] for b in graph.blocks if b.name in blocks} if blocks else {}
        places = {b.name: (b.node, b.branch, b.stream) for b in graph.blocks if b.name in lines} if lines else {}
        self.lines = {places[name][:2]: (places[name][2], line) for name, line in (lines or {}).items()}
        self.watch, self.seen = frozenset(watch), dict[str, Any]()
        self.state = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        self._masks: dict[int, Tensor] = {}

    def axis_mask(self, labels: Any, like: Tensor) -> Tensor:
        """The mask along one axis, in the type and place of `like`."""
        assert self.mask is not None
        key = id(labels)
        if key not in self._masks:
            index = torch.from_numpy(np.ascontiguousarray(self.graph.component[labels]))
            self._masks[key] = self.mask[index.to(self.mask.device)]
        return self._masks[key].to(device=like.device, dtype=like.dtype)

    def along(self, node: fx.Node, x: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        """Product of the masks of some axes of a node's value, broadcastable to it; None where none is live."""
        labels = self.graph.env[node]
        out: Tensor | None = None
        for d in dims:
            if labels[d] is None:
                continue
            view = [1] * x.dim()
            view[d] = -1
            m = self.axis_mask(labels[d], x).view(view)
            out = m if out is None else out * m
        return out

    def __call__(self, inputs: Inputs) -> list[Any]:
        """Flat outputs for inputs of the traced structure and shapes.

        Raises:
            InputsError: where the inputs differ in structure from those the model was traced on.
        """
        traced = self.graph.traced
        flat = pytree.tree_leaves(inputs)
        if len(flat) != len(traced.inputs):
            raise InputsError(f"the graph was traced with {len(traced.inputs)} inputs, {len(flat)} are given")
        given = dict(zip(traced.inputs, flat, strict=True))
        env: dict[fx.Node, Any] = {}
        last = last_uses(traced.graph, traced.outputs)
        for node in traced.graph.nodes:
            env[node] = self._placeholder(node, given) if node.op == "placeholder" else self._run(node, env)
            if node.name in self.watch:
                self.seen[node.name] = env[node]
            for n in last.get(node, ()):
                del env[n]
        return [env[o] if isinstance(o, fx.Node) else o for o in traced.outputs]

    def _placeholder(self, node: fx.Node, given: Mapping[str, Any]) -> Any:
        traced = self.graph.traced
        if node.name in traced.tensors:
            return self.state[traced.tensors[node.name]].detach()
        value = traced.constants.get(node.name, given.get(node.name))
        return value.clone() if isinstance(value, Tensor) else value

    def _run(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        reads = self.graph.facts.reads.get(node.name, ()) if self.mask is not None else ()
        masked: dict[fx.Node, Any] = {}
        for argument, axis in reads:
            x = masked.get(argument, env[argument])
            m = self.along(argument, x, (axis,))
            masked[argument] = x if m is None else x * m

        def value(n: fx.Node) -> Any:
            x = masked.get(n, env[n])
            if (node.name, n.name) in self.lines:
                stream, line = self.lines[node.name, n.name]
                return line(next(env[m] for m in node.all_input_nodes if m.name == stream))
            return x * self.added[node.name, n.name] if (node.name, n.name) in self.added else x

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if node.name in self.numbers:
            args, kwargs = _with_numbers(args, kwargs, self.numbers[node.name])
        if self.mask is not None and self.graph.facts.statistics.get(node.name):
            out = _STATISTICS[op_name(node.target)](self, node, *in_full(node, args, kwargs))
            return out if autocast_of(node) is None else _typed(out, node.meta["val"])
        return computed(node, args, kwargs)


def _with_numbers(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], numbers: Mapping[int | str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with some numbers replaced."""
    named = {**kwargs, **{k: v for k, v in numbers.items() if isinstance(k, str)}}
    return tuple(numbers.get(k, a) for k, a in enumerate(args)), named


def _typed(value: Any, like: Any) -> Any:
    """A value, or several, in the types of others."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_typed, value, like))
    return value.to(like.dtype)


def _dims(x: Tensor, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == []:
        return tuple(range(x.dim()))
    return tuple(d % x.dim() for d in ([dim] if isinstance(dim, int) else dim))


def _argument(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, default: Any = None) -> Any:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    if name in kwargs:
        return kwargs[name]
    k = names.index(name) if name in names else -1
    if 0 <= k < len(args):
        return args[k]
    return default


def _source(node: fx.Node) -> fx.Node:
    n = node.args[0]
    assert isinstance(n, fx.Node)
    return n


def _layer_norm(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x = args[0]
    dims = tuple(range(x.dim() - len(args[1]), x.dim()))
    get = functools.partial(_argument, node, args, kwargs)
    rms, eps = "rms" in op_name(node.target), get("eps")
    eps = (torch.finfo(x.dtype).eps if rms else 1e-5) if eps is None else eps
    m = run.along(_source(node), x, dims)
    return masked_layer_norm(x, dims, m, get("weight"), get("bias"), eps, centred=not rms)


def _group_norm(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, groups = args[0], args[1]
    get = functools.partial(_argument, node, args, kwargs)
    m = run.axis_mask(run.graph.env[_source(node)][1], x)
    change, place = run.norms.get(node.name), None
    if change is not None and not change.exact:
        position = torch.cumsum(m > 0, 0) - 1
        place = (position // (int((m > 0).sum()) // change.after)).clamp(0, change.after - 1)
        groups = change.after
    return masked_group_norm(x, m, groups, get("weight"), get("bias"), get("eps", 1e-5), place)


def _batch_norm(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    get = functools.partial(_argument, node, args, kwargs)
    m = run.along(_source(node), args[0], tuple(d for d in range(args[0].dim()) if d != 1))
    return masked_batch_norm(args[0], m, get("weight"), get("bias"), get("eps", 1e-5))


def _reduce(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    name = op_name(node.target)
    dims = _dims(x, _argument(node, args, kwargs, "dim"))
    keep = bool(_argument(node, args, kwargs, "keepdim", False))
    m = run.along(_source(node), x, dims)
    assert m is not None
    if name == "aten::mean":
        return masked_mean(x, dims, m, keep)
    if name in ("aten::sum", "aten::linalg_vector_norm", "aten::norm"):
        return node.target(x * m, *args[1:], **kwargs)  # type: ignore[operator]
    correction = _argument(node, args, kwargs, "correction")
    if correction is None:
        correction = int(bool(_argument(node, args, kwargs, "unbiased", True)))
    return masked_spread(name, x, dims, m, correction, keep)


def _extreme(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, name = args[0], op_name(node.target).removeprefix("aten::")
    m = run.along(_source(node), x, _dims(x, _argument(node, args, kwargs, "dim")))
    assert m is not None
    return node.target(masked_extreme(name, x, m), *args[1:], **kwargs)  # type: ignore[operator]


def _topk(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    get = functools.partial(_argument, node, args, kwargs)
    m = run.along(_source(node), args[0], _dims(args[0], get("dim", -1)))
    assert m is not None
    kind = "amax" if get("largest", True) else "amin"
    return torch.ops.aten.topk(masked_extreme(kind, args[0], m), *args[1:], **kwargs)


def _range(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    m = run.along(_source(node), args[0], _dims(args[0], kwargs.get("dim")))
    assert m is not None
    return masked_range(lambda x: node.target(x, *args[1:], **kwargs), args[0], m)  # type: ignore[operator]


def _softmax(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, dim = args[0].to(node.meta["val"].dtype), _dims(args[0], args[1])
    m = run.along(_source(node), x, dim)
    assert m is not None
    return masked_softmax(x, dim[0], m, "log" in op_name(node.target))


def _filter(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, (dim,) = args[0], run.graph.facts.statistics[node.name]
    get = functools.partial(_argument, node, args, kwargs)
    m, dilation = run.along(_source(node), x, (dim,)), get("dilation", (1,))
    assert m is not None
    return masked_filter(x, dim, m, args[1].flatten(), get("bias"), max(dilation))


def _observed(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    labels = run.graph.env[_source(node)]
    masks = {d: run.axis_mask(labels[d], args[0]) for d in run.graph.facts.statistics[node.name]}
    fake = functools.partial(torch.fused_moving_avg_obs_fake_quant, **kwargs)
    return masked_observation(fake, args[0], masks, args[1], args[2:])


def _distance(run: MaskedRun, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    m = run.along(_source(node), args[0], (args[0].dim() - 1,))
    assert m is not None
    return node.target(*kept_pairs(args[0], args[1], m), *args[2:], **kwargs)  # type: ignore[operator]


_STATISTICS: dict[str, Statistic] = {
    **{f"aten::{n}": _extreme for n in ["amax", "amin", "max", "min", "logsumexp", "prod"]},
    "aten::aminmax": _range,
    "aten::topk": _topk,
    **{f"aten::{n}": _softmax for n in ["softmax", "_softmax", "log_softmax", "_log_softmax"]},
    **{f"aten::conv{k}d": _filter for k in (1, 2, 3)},
    "aten::fused_moving_avg_obs_fake_quant": _observed,
    "aten::pairwise_distance": _distance,
    "aten::layer_norm": _layer_norm,
    "aten::rms_norm": _layer_norm,
    "aten::group_norm": _group_norm,
    "aten::batch_norm": _batch_norm,
    **{
        f"aten::{n}": _reduce
        for n in ["mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm"]
    },
}


def run_masked(
    graph: ChannelGraph,
    model: nn.Module,
    inputs: Inputs,
    keep: Any = None,
    norms: Mapping[str, NormChange] | None = None,
    blocks: Sequence[str] = (),
    numbers: Numbers | None = None,
    lines: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> list[Any]:
    """Flat outputs of the traced model, with the channels outside `keep` (by component) and some blocks masked, and
    `lines` in the place of some of these."""
    mask = None if keep is None else torch.as_tensor(np.asarray(keep), dtype=torch.float32)
    with torch.no_grad(), same_draws():
        return MaskedRun(graph, model, mask, norms, dict.fromkeys(blocks, 0.0), numbers, lines)(inputs)
