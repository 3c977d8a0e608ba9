"""What `ignore=` holds: every group with a part in something that it names, whether that makes or reads its channels.

names and globs    of tensors ("conv_in.weight"), modules ("mid_block", "*.attn*") or groups ("conv_in.weight:0")
module types       every tensor in a module of that type
a rule             (tensor name, the module that holds it) -> bool; turned into names where the model is at hand
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import nn

from fxprune.arguments import shown
from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.explain import meant
from fxprune.graph.modules import tensor_names

Rule: TypeAlias = Callable[[str, nn.Module], bool]
Ignore: TypeAlias = "str | type[nn.Module] | Rule | Sequence[str | type[nn.Module] | Rule]"


def as_items(ignore: Any) -> tuple[Any, ...]:
    """What `ignore` holds, one or several.

    Raises:
        InputsError: where something is neither a name, a module type nor a callable.
    """
    items: list[Any] = []
    for item in (ignore,) if isinstance(ignore, str) or callable(ignore) else ignore:
        if not isinstance(item, str) and not callable(item):
            raise InputsError(
                f"ignore= holds {shown(item)}; use names or globs of tensors or modules, module types such as "
                "nn.Conv2d, or a callable (tensor name, module) -> bool"
            )
        items.append(item)
    return tuple(items)


def _picks(rule: Any, name: str, module: nn.Module) -> bool:
    """Whether a caller's rule picks a tensor.

    Raises:
        InputsError: it fails.
    """
    try:
        return bool(rule(name, module))
    except Exception as e:
        raise InputsError(
            f"ignore= holds {shown(rule)}, which fails on {name!r}: {type(e).__name__}: {e}; a rule takes (tensor "
            "name, module that holds it) and returns True or False"
        ) from e


def named(model: nn.Module, ignore: Any) -> tuple[str | type, ...]:
    """The same, with every rule replaced by the names of the tensors that it picks."""
    out: list[str | type] = []
    for item in as_items(ignore):
        if isinstance(item, (str, type)):
            out.append(item)
        else:
            out += [name for name in tensor_names(model) if _picks(item, name, _holder(model, name))]
    return tuple(out)


def _holder(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def ignored(graph: ChannelGraph, ignore: Any) -> list[bool]:
    """For every group whether any of its tensors is named by `ignore`; raises as `ignored_tensors` does."""
    hit, names = ignored_tensors(graph, ignore), [item for item in as_items(ignore) if isinstance(item, str)]
    return [
        any(s.tensor in hit for s in group.slices) or any(fnmatch.fnmatchcase(group.name, p) for p in names)
        for group in graph.groups
    ]


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


def require_known(graph: ChannelGraph, ignore: Any) -> None:
    """Raise `InputsError` where a name in `ignore` is that of nothing: a typo would let go what it should keep."""
    places = {place for found in graph.within.values() for place in found}
    places.update(g.name for g in graph.groups)
    places.update(name for b in graph.blocks for name in (b.name, *b.modules))
    for pattern in (item for item in as_items(ignore) if isinstance(item, str)):
        if pattern not in places and not any(fnmatch.fnmatchcase(place, pattern) for place in places):
            raise InputsError(
                f"ignore= names {pattern!r}, which is no tensor of this {graph.model_class}, no module with tensors "
                f"and no group{meant(pattern, places)}"
            )
