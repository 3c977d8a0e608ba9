"""Which groups of channels a name, a glob, a module type or a rule means.

`ignored`: every group with a part in something named.  `matches`: the groups that are called after something named.

    names and globs    of tensors ("conv_in.weight") or modules ("mid_block", "*.attn*"), for `matches` of groups too
    module types       every tensor in a module of that type
    a rule             (tensor name, the module that holds it) -> bool; turned into names where the model is at hand
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from torch import nn

from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import tensor_names

Rule: TypeAlias = Callable[[str, nn.Module], bool]
Ignore: TypeAlias = "str | type[nn.Module] | Rule | Sequence[str | type[nn.Module] | Rule]"


def as_items(ignore: Any) -> tuple[Any, ...]:
    """What `ignore` holds, one or several.

    Raises:
        InputsError: where something is neither a name, a module type nor a callable.
    """
    items = (ignore,) if isinstance(ignore, str) or callable(ignore) else tuple(ignore)
    for item in items:
        if not isinstance(item, str) and not callable(item):
            raise InputsError(
                f"ignore= holds {item!r}; use names or globs of tensors or modules, module types such as nn.Conv2d, or "
                "a callable (tensor name, module) -> bool"
            )
    return items


def named(model: nn.Module, ignore: Any) -> tuple[str | type, ...]:
    """The same, with every rule replaced by the names of the tensors that it picks."""
    out: list[str | type] = []
    for item in as_items(ignore):
        if isinstance(item, (str, type)):
            out.append(item)
        else:
            out += [name for name in tensor_names(model) if item(name, _holder(model, name))]
    return tuple(out)


def _holder(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def ignored(graph: ChannelGraph, ignore: Any) -> list[bool]:
    """For every group whether any of its tensors is named by `ignore`; raises as `ignored_tensors` does."""
    hit = ignored_tensors(graph, ignore)
    return [any(s.tensor in hit for s in group.slices) for group in graph.groups]


def ignored_blocks(graph: ChannelGraph, ignore: Any) -> frozenset[str]:
    """Names of the blocks that `ignore` names, or that hold a tensor it names; raises as `ignored_tensors` does."""
    hit, names = ignored_tensors(graph, ignore), [item for item in as_items(ignore) if isinstance(item, str)]
    return frozenset(
        b.name
        for b in graph.blocks
        if hit.intersection(b.tensors) or any(fnmatch.fnmatchcase(n, p) for n in (b.name, *b.modules) for p in names)
    )


def ignored_tensors(graph: ChannelGraph, ignore: Any) -> frozenset[str]:
    """Tensors that are named by `ignore`.

    Raises:
        InputsError: `ignore` holds a rule; a graph has no modules to ask it about.
    """
    items = as_items(ignore)
    if rules := [item for item in items if not isinstance(item, (str, type))]:
        raise InputsError(
            f"plan() sees no modules, so ignore={getattr(rules[0], '__name__', rules[0])} cannot be asked here; pass "
            "it to prune(), or pass the names of the tensors to plan()"
        )
    return frozenset(
        t for t, places in graph.within.items() if any(_is(*place, item) for place in places.items() for item in items)
    )


def _is(path: str, cls: type, item: str | type) -> bool:
    return fnmatch.fnmatchcase(path, item) if isinstance(item, str) else issubclass(cls, item)


def matches(group: str, pattern: str) -> bool:
    """Whether a pattern names a group, the tensor that the group is called after, or a module around that tensor."""
    parts = group.rpartition(":")[0].split(".")
    names = [group, *(".".join(parts[:i]) for i in range(1, len(parts) + 1))]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def nearest(pattern: str, groups: Iterable[str]) -> str:
    """A hint for a pattern that matches nothing."""
    close = difflib.get_close_matches(pattern, list(groups), n=1, cutoff=0.3)
    return f"; did you mean {close[0]!r}?" if close else ""
