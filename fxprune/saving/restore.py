"""A saved model made again from an unpruned module of its class: check that they fit, set integers, fill in tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.errors import SaveError
from fxprune.graph.blocks import inside
from fxprune.graph.provenance import holders_of
from fxprune.graph.recording import integers_of_class
from fxprune.planning.plan import Plan
from fxprune.rewriting.attributes import Change, entry_of, set_field
from fxprune.rewriting.fitted import CONVS, Fitted
from fxprune.rewriting.skip import Skip, plain_attributes
from fxprune.saving import weights
from fxprune.saving.header import DTYPES, HEADER, Saved, SkipInfo, TensorInfo


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every name of every parameter and buffer."""
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


def channels_last(tensor: torch.Tensor) -> torch.memory_format:
    """The channels-last memory format for a tensor of 4 or 5 axes."""
    return torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d


def fit(net: nn.Module, saved: Saved) -> None:
    """Check that a stock module is the one the folder's model was made from, set its changed integers, and take out
    what was taken out of that one.

    Raises:
        SaveError: where it is another.
    """
    modules = dict(net.named_modules(remove_duplicate=False))
    for path in saved.skips:
        if not path or path not in modules:
            raise SaveError(f"the stock module has no module {path!r:.80}, which was taken out of the saved one")
    stock = all_tensors(net)
    named = {name: t for name, t in stock.items() if not _taken_out(name, saved)}
    if unknown := sorted(((set(saved.tensors) | set(saved.tied)) - _of_maps(saved)) ^ set(named)):
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        have = "the stock module lacks" if unknown[0] not in named else "the folder lacks"
        raise SaveError(f"{have} {unknown[0]!r:.80}{more}: they are not of the same architecture ({saved.name})")
    parameters = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    for name, tensor in named.items():
        info = saved.tensors[saved.tied.get(name, name)]
        shape = tuple(tensor.shape)
        smaller = len(shape) == len(info.shape) and all(map(int.__le__, info.shape, shape))
        if not smaller or ((saved.plan is None or saved.plan.config) and info.shape != shape):
            raise SaveError(f"{name} is of shape {info.shape}, which cannot come of the stock module's {shape}")
        if (name in parameters) != (info.kind == "parameter"):
            raise SaveError(f"{name} is a {info.kind} in the folder, but not in the stock module")
    shapes = {name: tuple(t.shape) for name, t in stock.items()}
    for plan in (*saved.earlier, *([saved.plan] if saved.plan else [])):
        if plan.config:  # its widths are those of the config
            continue
        _plan_fits(plan, saved, shapes)
    for change in saved.changes:
        _apply(modules, change)
    for path, skip in saved.skips.items():
        _put(net, path, skip, saved)


def _of_maps(saved: Saved) -> set[str]:
    """The tensors of the linear maps that stand for blocks."""
    paths = (path for path, skip in saved.skips.items() if skip.block is not None)
    return {f"{path}.fitted.{leaf}" for path in paths for leaf in _LEAVES}


def _taken_out(name: str, saved: Saved) -> bool:
    return any(inside(name, path) for path in saved.skips)


_LEAVES = ("weight", "bias")


def _put(net: nn.Module, path: str, skip: SkipInfo, saved: Saved) -> None:
    """Take out the module of one path; under another name it has an entry of its own."""
    owner, _, leaf = path.rpartition(".")
    stands = Skip(skip.answer, skip.sizes, plain_attributes(net.get_submodule(path)))
    if skip.block is not None:
        stands = Fitted(stands, skip.block, skip.key, _layer(path, saved))
    setattr(net.get_submodule(owner), leaf, stands)


def _layer(path: str, saved: Saved) -> nn.Module:
    """The layer of a linear map, without values.

    Raises:
        SaveError: its tensors are not those of such a layer.
    """
    names = [f"{path}.fitted.{leaf}" for leaf in _LEAVES]
    infos = [saved.tensors.get(saved.tied.get(n, n)) for n in names]
    weight, bias = infos
    if weight is None or bias is None or {weight.kind, bias.kind} != {"parameter"}:
        raise SaveError(f"the folder has no parameters {names[0]} and bias, which stand for blocks that were taken out")
    size = len(bias.shape) == 1 and bias.shape[0]
    rank = len(weight.shape)
    if not size or rank not in (2, *CONVS) or weight.shape != (size, size, *[1] * (rank - 2)):
        raise SaveError(f"{names[0]} is of shape {weight.shape}, its bias of {bias.shape}: they are of no linear map")
    if rank == 2:
        return nn.Linear(size, size, device="meta")
    made: nn.Module = CONVS[rank](size, size, 1, device="meta")
    return made


def integers(module: nn.Module) -> dict[str, Any]:
    """A module's public integer attributes, rows of integers as lists: what pruning may change."""
    held = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in vars(module).items() if not k.startswith("_")}
    return {k: v for k, v in held.items() if all(type(x) is int for x in (v if isinstance(v, list) else [v]))}


def same_integers(net: nn.Module, model: nn.Module) -> None:
    """Check that `net`, as `fit` left it, has the integers of the model that is being saved.

    Raises:
        SaveError: where an attribute was changed that the report does not list.
    """
    own = {path: integers(module) for path, module in model.named_modules(remove_duplicate=False)}
    for path, module in net.named_modules(remove_duplicate=False):
        for name, value in integers(module).items():
            have = own[path].get(name, value)
            if have != value:
                where = f"{path}.{name}".removeprefix(".")
                raise SaveError(
                    f"{where} is {have}, but a {type(net).__name__} made from its config and report has {value}: "
                    "it was changed by hand, or by something else than fxprune"
                )


def _plan_fits(plan: Plan, saved: Saved, before: Mapping[str, tuple[int, ...]]) -> None:
    """Each group `tensor:axis` must have cut that axis at least by the channels that it lost."""
    for group in plan.sizes:
        lead = group.rpartition("#")[0] or group
        tensor, _, axis = lead.rpartition(":")
        if (tensor in before and _taken_out(tensor, saved)) or tensor in _of_maps(saved):  # by a later plan
            continue
        shape = before.get(tensor, ())
        info = saved.tensors.get(saved.tied.get(tensor, tensor))
        if info is None or not axis.isdecimal() or int(axis) >= len(shape):
            raise SaveError(
                f"the plan's group {group!r:.80} names no axis of this {saved.name}: it is of another model"
            )
        cut = shape[int(axis)] - info.shape[int(axis)]
        if cut < len(plan.removed.get(group, ())):
            raise SaveError(
                f"the plan takes {len(plan.removed[group])} channels from {tensor}, which lost {cut} of "
                f"{shape[int(axis)]} positions: it is the plan of another model"
            )


def _apply(modules: Mapping[str, nn.Module], change: Change) -> None:
    """Set an integer that the stock module has, at its saved old value, to its new one."""
    holder, _, name = change.name.rpartition(".")
    owner: Any = modules.get(change.path)
    held = {} if owner is None else holders_of(owner)
    if holder and (holder not in held or type(held[holder]) is dict):
        _apply_entry(modules, change)
        return
    owner = held[holder] if holder else owner
    where = f"{change.path}.{change.name}".removeprefix(".")
    of_class = isinstance(owner, nn.Module) and name in integers_of_class(type(owner))
    if owner is None or not (of_class or name in getattr(owner, "__dict__", {})):
        raise SaveError(f"the stock module has no attribute {where!r:.80}")
    have = vars(owner).get(name, getattr(owner, name, None))
    same = list(have) == list(change.before) if _rows(have, change.before) else have == change.before
    if not same or isinstance(have, bool):
        raise SaveError(
            f"the stock module has {where} = {have!r:.60}, the saved one had {change.before!r:.60} before it was "
            "pruned: pass the unpruned module that it was made from"
        )
    set_field(owner, name, type(have)(change.after) if _rows(have, change.after) else change.after)


def _apply_entry(modules: Mapping[str, nn.Module], change: Change) -> None:
    """The same in a list or dict that the module holds."""
    where = f"{change.path}.{change.name}".removeprefix(".")
    try:
        held, key = entry_of(modules[change.path], change.name)
    except LookupError as e:
        raise SaveError(f"the stock module has no integer {where!r:.80}") from e
    if held[key] != change.before or type(change.after) is not int:
        raise SaveError(
            f"the stock module has {where} = {held[key]}, the saved one had {change.before!r:.60} before it was "
            "pruned: pass the unpruned module that it was made from"
        )
    held[key] = change.after


def _rows(*values: Any) -> bool:
    return all(isinstance(v, (tuple, list)) for v in values)


def fill(net: nn.Module, saved: Saved, folder: Path, variant: str | None = None) -> None:
    """Give a module its saved tensors; names that shared one share it again."""
    held = _read_tensors(saved, folder, variant)
    modules = dict(net.named_modules(remove_duplicate=False))
    for name, first in {**{n: n for n in saved.tensors}, **saved.tied}.items():
        owner, _, leaf = name.rpartition(".")
        setattr(modules[owner], leaf, held[first])


def _read_tensors(saved: Saved, folder: Path, variant: str | None) -> dict[str, torch.Tensor]:
    read = weights.read(folder, set(saved.tensors), variant)
    held = {name: _made(data, name, saved.tensors[name], path) for name, data, path in read}
    return {name: held[name] for name in saved.tensors}


def _made(data: torch.Tensor, name: str, info: TensorInfo, path: Path) -> torch.Tensor:
    if tuple(data.shape) != info.shape or data.dtype != DTYPES[info.dtype]:
        raise SaveError(
            f"{name} is {data.dtype} of shape {tuple(data.shape)} in {path}, "
            f"but {info.dtype} of {info.shape} in {HEADER}"
        )
    memory = channels_last(data) if info.channels_last else torch.contiguous_format
    data = data.clone(memory_format=memory)  # the file stays mapped otherwise
    return nn.Parameter(data, requires_grad=info.requires_grad) if info.kind == "parameter" else data
