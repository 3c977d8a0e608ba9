"""Inputs that are objects (a decoder's cache): torch.export takes containers of tensors, so they travel as such.

`packed` puts every object that holds tensors into a container of these; `called` runs a model on the objects again,
copies of which hold the tensors given.  Inputs may also be those of a model's parts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.graph.modules import Inputs
from fxprune.graph.outputs import PLAIN, tensors_of

PARTS = "_fxprune_parts"  # the one keyword of inputs that are those of a model's parts (see `fxprune.graph.parts`)


@dataclass(frozen=True, eq=False)
class Packed:
    """An object, and the tensors that stand for those it holds."""

    template: Any
    tensors: tuple[torch.Tensor, ...]

    def unpacked(self) -> Any:
        """A copy of the object that holds the tensors."""
        return copy.deepcopy(self.template, {id(t): new for t, new in zip(self._own(), self.tensors, strict=True)})

    def _own(self) -> list[torch.Tensor]:
        return tensors_of(self.template)


class _Template:
    """An object as part of a tree's structure: the same structure for all objects of one class."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Template) and type(self.held) is type(other.held)

    def __hash__(self) -> int:
        return hash(type(self.held))


pytree.register_pytree_node(
    Packed,
    lambda p: (list(p.tensors), _Template(p.template)),
    lambda tensors, template: Packed(template.held, tuple(tensors)),
    serialized_type_name="fxprune.Packed",
    flatten_with_keys_fn=lambda p: (
        [(pytree.SequenceKey(k), t) for k, t in enumerate(p.tensors)],
        _Template(p.template),
    ),
)


def packed(inputs: Inputs) -> Inputs:
    """The inputs with every object that holds tensors packed."""

    def pack(x: Any) -> Any:
        if isinstance(x, (*PLAIN, nn.Module)):
            return x
        tensors = tensors_of(x)
        return Packed(x, tuple(tensors)) if tensors else x

    out: Inputs = pytree.tree_map(pack, inputs)
    return out


def unpacked(inputs: Inputs) -> Inputs:
    """The inputs as a model takes them."""
    out: Inputs = pytree.tree_map(
        lambda x: x.unpacked() if isinstance(x, Packed) else x, inputs, is_leaf=lambda x: isinstance(x, Packed)
    )
    return out


def called(model: nn.Module, inputs: Inputs) -> Any:
    """What a model returns for inputs that may be packed; for inputs of its parts, what each of these returns."""
    args, kwargs = unpacked(inputs)
    if PARTS in kwargs:
        return {name: called(model.get_submodule(name), given) for name, given in kwargs[PARTS].items()}
    return model(*args, **kwargs)


def in_parts(inputs: Inputs) -> bool:
    """Whether inputs are those of a model's parts."""
    return PARTS in inputs[1]


def copied(inputs: Inputs) -> Inputs:
    """The inputs again, tensors cloned: a forward may change them."""
    again: Inputs = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, inputs)
    return again
