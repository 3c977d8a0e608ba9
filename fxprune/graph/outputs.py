"""Which of a model's outputs count: they keep their width, and the proofs compare them.

A model may return anything: tensors, containers of them, and plain objects that hold some (a posterior, a cache), which
are opened.  Outputs that nobody reads may be released: then their channels may go, and no proof looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError

Wanted: TypeAlias = "str | Sequence[str] | Callable[[Any], Any]"
PLAIN = (torch.Tensor, int, float, complex, bool, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass
class Outputs:
    """What is looked at of a model's return value.

    Attributes:
        wanted: names (a key, an attribute, the number of an item; dotted where they are nested), or a function of the
            return value; None: all.
        released: names or classes of outputs that only the model itself reads (a cache, say), wherever they stand.
        whole: whether the last return value was looked at as it is: nothing opened, nothing left out.
        names: of the last return value's tensors: those that count; `left` are those released.
    """

    wanted: Wanted | None = None
    released: tuple[str | type, ...] = ()
    whole: bool = True
    names: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    shape: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        named = (self.wanted,) if isinstance(self.wanted, str) else self.wanted
        if named is None or callable(named):
            return
        if not isinstance(named, (list, tuple)) or not named or not all(isinstance(n, str) and n for n in named):
            raise InputsError(
                f"outputs={self.wanted!r:.60} must be names of outputs, at least one, or a function of what the model "
                "returns"
            )

    def __call__(self, out: Any) -> Any:
        """The part of a return value that counts, with every plain object as a dict of its tensors.

        Raises:
            InputsError: a name that it has no output of.
        """
        opened = _opened(out, self.released, set())
        self.shape = pytree.tree_structure(opened)
        held = self._picked(out, opened)
        every, names = _named(_opened(out, (), set())), _named(held)
        kept = {id(x) for x in names.values()}
        self.names, self.left = tuple(names), tuple(n for n, x in every.items() if id(x) not in kept)
        self.whole = self.wanted is None and pytree.tree_structure(out) == self.shape and not self.left
        return held

    def _picked(self, out: Any, opened: Any) -> Any:
        if self.wanted is None:
            return opened
        if callable(self.wanted):
            return _opened(_chosen(self.wanted, out), self.released, set())
        wanted = (self.wanted,) if isinstance(self.wanted, str) else tuple(self.wanted)
        return {name: _at(opened, name) for name in wanted}

    def training(self) -> Outputs:
        """The same in train mode, where another structure comes back: then all of it counts (a loss reads it)."""
        return _Training(released=self.released, eval_mode=self)

    def __str__(self) -> str:
        return f"{shortened(self.left)} released, {shortened(self.names) or 'nothing'} compared" if self.left else ""


def _chosen(choose: Callable[[Any], Any], out: Any) -> Any:
    """What a caller's function takes of the outputs.

    Raises:
        InputsError: it fails.
    """
    try:
        return choose(out)
    except Exception as e:
        raise InputsError(f"outputs= fails on what the model returns: {type(e).__name__}: {e!s:.200}") from e


def shortened(names: Sequence[str], most: int = 4) -> str:
    """Names in a row, the first of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass
class _Training(Outputs):
    eval_mode: Outputs = field(default_factory=Outputs)

    def _picked(self, out: Any, opened: Any) -> Any:
        if self.eval_mode.shape == pytree.tree_structure(opened):
            return self.eval_mode._picked(out, opened)
        return opened


def _opened(value: Any, released: Sequence[str | type], above: set[int]) -> Any:
    """A return value whose leaves torch can carry: plain objects become dicts of what they hold of tensors."""
    if isinstance(value, PLAIN) or value is None:
        return value
    kinds = (nn.Module, type, *(r for r in released if isinstance(r, type)))
    if id(value) in above or isinstance(value, kinds) or callable(value):
        return None
    above = above | {id(value)}
    if pytree.tree_structure(value).type is not None and not pytree.tree_structure(value).is_leaf():
        return _container(value, released, above)
    held = {k: _opened(v, released, above) for k, v in _attributes(value).items() if k not in released}
    return {k: v for k, v in held.items() if _tensors(v)} or None


def _container(value: Any, released: Sequence[str | type], above: set[int]) -> Any:
    if isinstance(value, Mapping) and any(k in released for k in value):
        value = {k: v for k, v in value.items() if k not in released}
    return pytree.tree_map(
        lambda v: v if v is value else _opened(v, released, above), value, is_leaf=lambda v: v is not value
    )


def _attributes(value: Any) -> dict[str, Any]:
    slots = (s for c in type(value).__mro__ for s in getattr(c, "__slots__", ()) if isinstance(s, str))
    return {**{s: getattr(value, s) for s in slots if hasattr(value, s)}, **getattr(value, "__dict__", {})}


def _tensors(value: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors that a value holds, in containers and plain objects; each once."""
    return list({id(x): x for x in _tensors(_opened(value, (), set()))}.values())


def _named(value: Any, path: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Every tensor of a return value by its dotted name; a tensor alone is called "output"."""
    if isinstance(value, torch.Tensor):
        return {".".join(path) or "output": value}
    return {name: x for key, child in _children(value) for name, x in _named(child, (*path, key)).items()}


def _children(value: Any) -> list[tuple[str, Any]]:
    """What a container holds, by key, field or number."""
    if isinstance(value, Mapping):
        return [(str(k), v) for k, v in value.items()]
    if hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(k), v) for k, v in enumerate(value)]
    items = [] if pytree.tree_is_leaf(value) else pytree.tree_leaves(value, is_leaf=lambda x: x is not value)
    return [(str(k), v) for k, v in enumerate(items)]


def _at(value: Any, name: str) -> Any:
    """The output of a dotted name.

    Raises:
        InputsError: there is none; says which there are.
    """
    names = list(_named(value))
    found = value
    for part in name.split("."):
        items = dict(_children(found))
        if part not in items:
            raise InputsError(
                f"outputs={name!r} names no output of the model; it returns {', '.join(names) or 'no tensor'}"
            )
        found = items[part]
    return found
