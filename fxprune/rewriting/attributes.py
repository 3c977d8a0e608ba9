"""Integers that a module's Python holds follow the plan: what equations solve for, and what torch.nn layers tell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fxprune.graph.modules import evaluating
from fxprune.graph.provenance import Attr


@dataclass(frozen=True)
class Change:
    """An attribute of a module, before and after."""

    path: str
    name: str
    before: Any
    after: Any


def set_attribute(model: nn.Module, attr: Attr, new: int) -> list[Change]:
    module = model.get_submodule(attr.path)
    owner = getattr(module, attr.holder) if attr.holder else module
    old = owner[attr.name] if type(owner) is dict else getattr(owner, attr.name)
    value: Any = new
    if attr.index is not None:
        value = type(old)(new if i == attr.index else v for i, v in enumerate(old))
    set_field(owner, attr.name, value)
    return [Change(attr.path, attr.within, _plain(old), value)]


def set_field(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, that of a frozen dataclass, too; or an item of a dict."""
    if type(owner) is dict:
        owner[name] = value
        return
    try:
        setattr(owner, name, value)
    except dataclasses.FrozenInstanceError:
        object.__setattr__(owner, name, value)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value


def set_entry(model: nn.Module, name: str, new: int) -> Change | None:
    """Set an integer that is an attribute, or in lists and dicts of one; None where it is that already.

    Raises:
        LookupError: there is no such integer.
    """
    owner, key = entry_of(model, name)
    old = owner[key]
    owner[key] = new
    return None if old == new else Change("", name, old, new)


def entry_of(owner: Any, name: str) -> tuple[Any, Any]:
    """The dict or list that holds what a dotted name leads to, and its key there: no property is run.

    Raises:
        LookupError: nothing is called so, or it is no integer.
    """
    parts: list[Any] = [int(p) if p.isdecimal() else p for p in name.split(".")]
    for depth, part in enumerate(parts):
        held = owner if isinstance(owner, (list, dict)) else getattr(owner, "__dict__", {})
        if isinstance(held, list) != isinstance(part, int) or (not isinstance(held, list) and part not in held):
            raise LookupError(name)
        owner = held[part]
        if depth == len(parts) - 1 and type(owner) is int:
            return held, part
    raise LookupError(name)


def sync_layers(model: nn.Module) -> list[Change]:
    """Sizes that torch.nn layers only tell (`in_features`, ...) follow their tensors."""
    changes = []
    with evaluating(model):  # a parametrised weight (spectral norm) changes its buffers where it is read in training
        sizes = {path: layer_sizes(module) for path, module in model.named_modules()}
    for path, module in model.named_modules():
        for name, new in sizes[path].items():
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
        return _rnn_sizes(module)
    if isinstance(module, nn.MultiheadAttention):
        return _mha_sizes(module)
    return {}


def _rnn_sizes(m: nn.RNNBase) -> dict[str, Any]:
    inputs, hidden = m._parameters["weight_ih_l0"], m._parameters["weight_hh_l0"]
    shrink = m._parameters.get("weight_hr_l0")  # (projection, units)
    assert inputs is not None
    assert hidden is not None
    units = hidden.shape[1] if shrink is None else shrink.shape[1]
    sizes = {"input_size": inputs.shape[1], "hidden_size": units}
    return sizes if shrink is None else {**sizes, "proj_size": shrink.shape[0]}


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
