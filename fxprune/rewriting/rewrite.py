"""From a model and a plan to a dense model of the same class.

1. every parameter and buffer loses the positions that go; tied tensors stay tied;
2. integers that the model's Python holds follow (see `fxprune.graph.equations`), those of torch.nn layers too;
3. an attention whose 1/sqrt(head_dim) is implicit keeps its temperature: the factor goes into the query weights;
4. modules of blocks that go are taken out (see `fxprune.depth`);
5. where the integers cannot be made to agree, the rewritten graph becomes the model's forward.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.graph.channels import ChannelGraph
from fxprune.rewriting.blocks import take_out
from fxprune.rewriting.skip import Skip, put
from fxprune.scoring.elementwise import BLOCK
from fxprune.graph.equations import Equation, Unsolved, solve
from fxprune.errors import PlanError, RewriteError
from fxprune.rewriting.graph_forward import use_graph
from fxprune.graph.labels import Axis, Bools
from fxprune.planning.plan import Plan
from fxprune.graph.provenance import Attr
from fxprune.graph.rules.op import op_name, shape_of
from fxprune.graph.temperature import query_rows


@dataclass(frozen=True)
class Change:
    """An attribute of a module, before and after."""

    path: str
    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Rewritten:
    """A dense model, the attributes that changed, and what its forward is: "module" or "graph"."""

    model: nn.Module
    changes: tuple[Change, ...]
    forward: str = "module"


class UnsolvedError(RewriteError):
    """The module's integers cannot follow the plan; `equation` is the one that fails."""

    def __init__(self, message: str, equation: Equation) -> None:
        super().__init__(message)
        self.equation = equation


def rewrite(model: nn.Module, graph: ChannelGraph, plan: Plan, *, forward: str = "module") -> Rewritten:
    """Apply a plan to the model it was made for, or to another checkpoint of the same architecture; that one stays.

    Args:
        forward: "module" keeps the module's own forward and brings its integers along; "graph" makes the rewritten
            graph the forward, for modules whose Python cannot follow.

    Raises:
        PlanError: where plan, graph and model do not belong together.
        UnsolvedError: where the module's own forward cannot follow the plan; names the attribute.
    """
    keep = plan.kept(graph)
    _belongs(model, graph)
    whole, graph = graph, graph.without(plan.blocks)
    try:
        attributes = _solve(graph, plan, keep) if forward == "module" else {}
    except Unsolved as e:
        raise UnsolvedError(f"the forward of {type(model).__name__} cannot follow the plan: {e}", e.equation) from e
    small = deep_copy(model, _cut_tensors(model, graph, keep))
    for fold in _folds(graph, keep):
        fold.apply(small)
    changes = [c for attr, new in attributes.items() for c in _set(small, attr, new)]
    changes += sync_layers(small)
    if plan.blocks:
        take_out(model, small, whole, plan.blocks, keep, run=forward == "module")
    if forward == "graph":
        use_graph(small, graph, plan, group_counts(graph, plan, keep))
    return Rewritten(small, tuple(changes), forward)


def transplant(model: nn.Module, small: nn.Module) -> nn.Module:
    """Give `model` and its modules the state of `small`, a pruned copy of it; other references to them stay valid."""
    for path, module in small.named_modules():
        if isinstance(module, Skip):
            put(model, path, module)
    own = dict(model.named_modules(remove_duplicate=False))
    for path, module in small.named_modules(remove_duplicate=False):
        target = own[path].__dict__
        keep = target["_modules"]
        target.clear()
        target.update(module.__dict__)
        target["_modules"] = keep
        if isinstance(forward := target.get("forward"), types.MethodType):
            target["forward"] = types.MethodType(forward.__func__, own[path])
    return model


def _belongs(model: nn.Module, graph: ChannelGraph) -> None:
    named = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for name, shape in graph.shapes.items():
        have = tuple(named[name].shape) if name in named else None
        if have != shape:
            raise PlanError(
                f"{type(model).__name__} has {name} of shape {have}, the plan's graph has {shape}: "
                "trace this model and plan again"
            )


# ---- tensors ----------------------------------------------------------------------------------------------------


def kept_positions(graph: ChannelGraph, name: str, keep: Bools) -> list[torch.Tensor | None]:
    """For every axis of a tensor the positions that stay; None where all do."""
    out: list[torch.Tensor | None] = []
    for axis in graph.tensors[name]:
        stays = None if axis is None else keep[graph.component[axis]]
        out.append(None if stays is None or stays.all() else torch.from_numpy(np.flatnonzero(stays)))
    return out


def _cut_tensors(model: nn.Module, graph: ChannelGraph, keep: Bools) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every parameter and buffer that loses positions, with what replaces it (a copy of the model takes these)."""
    out = []
    for name in graph.tensors:
        positions = kept_positions(graph, name, keep)
        if any(p is not None for p in positions):
            old = _get(model, name)
            out.append((old, _cut(old, positions)))
    return out


def deep_copy(model: nn.Module, instead: Iterable[tuple[torch.Tensor, torch.Tensor]] = ()) -> nn.Module:
    """A copy of a model with some tensors replaced.

    Tensors that a module keeps from a forward with gradients (old weight norms do) are copied detached.
    """
    kept = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in kept if not t.is_leaf}
    return copy.deepcopy(model, memo | {id(old): new for old, new in instead})


def _get(model: nn.Module, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _cut(tensor: torch.Tensor, positions: list[torch.Tensor | None]) -> torch.Tensor:
    data = tensor.detach()
    index = {d: p.to(data.device) for d, p in enumerate(positions) if p is not None}
    if list(index) == [0, 1] and data.is_contiguous():
        data = _submatrix(data, index[0], index[1])
    else:
        for d, p in index.items():
            data = data.index_select(d, p)
    if tensor.dim() in (4, 5) and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=_last(tensor)):
        data = data.contiguous(memory_format=_last(tensor))
    if not isinstance(tensor, nn.Parameter):
        return data
    return nn.Parameter(data, requires_grad=tensor.requires_grad)


def _submatrix(matrix: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`matrix[rows][:, columns]`, a block of rows at a time, so that what lies between is never whole in memory."""
    out = matrix.new_empty(len(rows), len(columns), *matrix.shape[2:])
    at_once = max(1, BLOCK // max(1, matrix[0].numel()))
    for block, some in zip(torch.split(out, at_once), torch.split(rows, at_once), strict=True):
        torch.index_select(matrix.index_select(0, some), 1, columns, out=block)
    return out


def _last(tensor: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d


# ---- integers ---------------------------------------------------------------------------------------------------


def _solve(graph: ChannelGraph, plan: Plan, keep: Bools) -> dict[Attr, int]:
    groups = group_counts(graph, plan, keep)

    def new_of(eq: Equation) -> int:
        return groups.get(eq.node, eq.old) if eq.groups else graph.kept(eq.axis, keep, eq.old)

    def kept(axis: Axis, old: int) -> int:
        return graph.kept(axis, keep, old)

    solved = solve(list(graph.equations), new_of, graph.axis_of, kept)
    return {attr: new for attr, new in solved.items() if new != attr.old}


def group_counts(graph: ChannelGraph, plan: Plan, keep: Bools) -> dict[str, int]:
    """New numbers of groups: node of a group norm or a grouped convolution -> groups."""
    out = {node: change.after for node, change in plan.norms.items()}
    for node in graph.traced.graph.nodes:
        if node.op == "call_function" and op_name(node.target).startswith("aten::conv"):
            x, w = node.args[0], node.args[1]
            shape = shape_of(w)
            at = len(shape_of(x)) - len(shape) + 1
            channels = graph.kept(graph.env[x][at], keep, shape_of(x)[at])
            if "transpose" in node.name:
                n_out = graph.kept(graph.env[node][at], keep, shape_of(node)[at])
                out[node.name] = n_out // max(1, graph.kept(graph.env[w][1], keep, shape[1]))
            else:
                out[node.name] = channels // max(1, graph.kept(graph.env[w][1], keep, shape[1]))
    return out


def _set(model: nn.Module, attr: Attr, new: int) -> list[Change]:
    module = model.get_submodule(attr.path)
    owner = module.config if attr.config else module
    old = getattr(owner, attr.name)
    value: Any = new
    if attr.index is not None:
        value = type(old)(new if i == attr.index else v for i, v in enumerate(old))
    setattr(owner, attr.name, value)
    return [Change(attr.path, ("config." if attr.config else "") + attr.name, old, value)]


def sync_layers(model: nn.Module) -> list[Change]:
    """Sizes that torch.nn layers only tell (`in_features`, ...) follow their tensors."""
    changes = []
    for path, module in model.named_modules():
        for name, new in layer_sizes(module).items():
            old = getattr(module, name, None)
            if old is not None and old != new:
                setattr(module, name, new)
                changes.append(Change(path, name, old, new))
    return changes


def layer_sizes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a torch.nn layer that repeat a shape of its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return {"in_channels": weight.shape[0], "out_channels": weight.shape[1] * module.groups}  # type: ignore[union-attr]
    if isinstance(module, nn.modules.conv._ConvNd):
        return {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * module.groups}  # type: ignore[union-attr]
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}  # type: ignore[union-attr]
    if isinstance(module, nn.Bilinear):
        o, a, b = weight.shape  # type: ignore[union-attr]
        return {"out_features": o, "in1_features": a, "in2_features": b}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        one = weight if weight is not None else module.running_mean
        return {} if one is None else {"num_features": one.shape[0]}
    if isinstance(module, nn.GroupNorm):
        return {} if weight is None else {"num_channels": weight.shape[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {} if weight is None else {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}  # type: ignore[union-attr]
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight.shape[0]}  # type: ignore[union-attr]
    if isinstance(module, nn.RNNBase):
        inputs, hidden = module._parameters["weight_ih_l0"], module._parameters["weight_hh_l0"]
        return {"input_size": inputs.shape[1], "hidden_size": hidden.shape[1]}  # type: ignore[union-attr]
    if isinstance(module, nn.MultiheadAttention):
        return _mha_sizes(module)
    return {}


def _mha_sizes(m: nn.MultiheadAttention) -> dict[str, Any]:
    weights = m._parameters  # either one fused weight, or one each for query, key and value
    fused = weights["in_proj_weight"]
    q, k, v = (fused if fused is not None else weights[f"{n}_proj_weight"] for n in "qkv")
    assert q is not None
    assert k is not None
    assert v is not None
    width = q.shape[0] // (1 if fused is None else 3)
    sizes = {"embed_dim": q.shape[1], "kdim": k.shape[1], "vdim": v.shape[1]}
    return {**sizes, "head_dim": width // max(1, m.num_heads)}


# ---- attention temperature -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """Rows of a linear layer's weight (and bias) to be multiplied, after cutting."""

    names: tuple[str, ...]
    rows: torch.Tensor
    factor: float

    def apply(self, model: nn.Module) -> None:
        for name in self.names:
            with torch.no_grad():
                tensor = _get(model, name)
                if not tensor.is_meta:
                    tensor[self.rows.to(tensor.device)] *= self.factor


def _folds(graph: ChannelGraph, keep: Bools) -> list[Fold]:
    out: dict[tuple[str, bytes], Fold] = {}
    for attended in graph.facts.attended:
        old = len(attended.axis)
        new = graph.kept(attended.axis, keep, old)
        if new == old:
            continue
        source = query_rows(graph.traced, attended.node)
        assert source is not None  # analyse() froze the axis otherwise
        axis = graph.tensors[source.weight][0]
        stays = np.ones(graph.shapes[source.weight][0], bool) if axis is None else keep[graph.component[axis]]
        rows = np.flatnonzero(np.isin(np.flatnonzero(stays), source.rows))
        names = (source.weight,) if source.bias is None else (source.weight, source.bias)
        out[source.weight, rows.tobytes()] = Fold(names, torch.from_numpy(rows), (new / old) ** 0.5)
    return list(out.values())
