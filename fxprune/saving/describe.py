"""What will be said of a model in its `fxprune.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from fxprune.errors import SaveError
from fxprune.graph.modules import comes_from, tensor_names
from fxprune.reporting.report import Report, is_pruned, report
from fxprune.rewriting.attributes import Change
from fxprune.rewriting.fitted import Fitted
from fxprune.rewriting.skip import Skip
from fxprune.saving import stock
from fxprune.saving.header import DTYPES, Saved, SkipInfo, TensorInfo, Told, class_name
from fxprune.saving.restore import all_tensors, channels_last

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def describe(model: nn.Module, metrics: Mapping[str, Any] | None = None) -> Saved:
    """What `fxprune.json` will say of a model.

    Raises:
        SaveError: where the model holds what cannot be written as dense tensors and integers.
    """
    made = report_of(model)
    if made is not None and made.forward != "module":
        raise SaveError(
            f"this {type(model).__name__} runs its rewritten graph, since its own forward cannot follow the plan "
            f"({made.reason}); that cannot be saved whole. Keep fxprune.report(model).plan.to_json() and its "
            "state_dict(), from which fxprune.apply(dense, plan) and load_state_dict() make it again; or prune less, "
            "or with ignore= what is in the way"
        )
    for path, module in model.named_modules():
        if comes_from(module, "peft"):
            raise SaveError(
                f"{path} is a layer of peft ({type(module).__name__}): save it apart (pipeline.save_lora_weights), or "
                "make it part of the weights (pipeline.fuse_lora), then pipeline.unload_lora_weights() first"
            )
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise SaveError(f"{path or 'the model'} ({type(module).__name__}) holds extra state beside its tensors")
    first = tensor_names(model)
    adapter, config = stock.recipe_of(model, () if made is None else made.changes)
    named = all_tensors(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own = {name: t for name, t in named.items() if first[name] == name}
    skips = {p: m for p, m in model.named_modules(remove_duplicate=False) if isinstance(m, Skip)}
    return Saved(
        module=type(model).__module__,
        name=class_name(type(model)),
        tensors={name: _info(name, t, name in parameters) for name, t in own.items()},
        tied={name: f for name, f in first.items() if name != f},
        adapter=adapter,
        config=config,
        plan=None if made is None else made.plan,
        earlier=() if made is None else made.earlier,
        changes=() if made is None else tuple(_plain(c) for c in made.changes if not _of_skip(c, skips)),
        skips={path: _skip(s) for path, s in skips.items()},
        checks=() if made is None else made.checks,
        held=() if made is None else made.held,
        seed=getattr(made, "seed", None),
        told=Told() if made is None else _told(made),
        versions=versions(model),
        metrics=metrics,
        anatomy=None if made is None else made.anatomy,
        timing=None if made is None else made.timing,
    )


def report_of(model: nn.Module) -> Report | None:
    """The report of a pruned model; None for any other."""
    return report(model) if is_pruned(model) else None


def _told(made: Report) -> Told:
    """What a report says, without the paths of this machine's source files."""
    told = Told(**{f.name: getattr(made, f.name) for f in fields(Told)})
    return replace(told, reduced=tuple(dict.fromkeys(r.partition(" at File ")[0] for r in told.reduced)))


def _skip(skip: Skip) -> SkipInfo:
    """What is told of a module that was taken out."""
    sizes = tuple(map(int, skip.sizes))
    if isinstance(skip, Fitted):
        return SkipInfo(skip.answer, sizes, skip.block, skip.key)
    return SkipInfo(skip.answer, sizes)


def _of_skip(change: Change, skips: Mapping[str, Skip]) -> bool:
    """Whether a change is of the sizes that a `Skip` is saved with, or of a layer in it, whose tensors tell them."""
    if change.path in skips:
        return change.name == "sizes"
    return change.path.endswith(".fitted") and change.path.removesuffix(".fitted") in skips


def _info(name: str, tensor: torch.Tensor, parameter: bool) -> TensorInfo:
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        kind = "a tensor without values (meta)" if tensor.is_meta else f"a {type(tensor).__name__} ({tensor.layout})"
        raise SaveError(f"{name} is {kind}; only dense tensors with values can be saved")
    if tensor.dtype not in DTYPE_NAMES:
        raise SaveError(
            f"{name} is of {tensor.dtype}, which safetensors cannot hold; convert it, model.to(torch.float32)"
        )
    return TensorInfo(
        kind="parameter" if parameter else "buffer",
        shape=tuple(tensor.shape),
        dtype=DTYPE_NAMES[tensor.dtype],
        requires_grad=parameter and tensor.requires_grad,
        channels_last=_is_channels_last(tensor),
    )


def _is_channels_last(tensor: torch.Tensor) -> bool:
    if tensor.dim() not in (4, 5) or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=channels_last(tensor))


def _plain(change: Change) -> Change:
    """A change with plain integers, or tuples of them."""

    def plain(value: Any) -> int | tuple[int, ...]:
        values = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise SaveError(f"{change.path}.{change.name} became {value!r:.60}; only integers can be saved")
        whole = tuple(int(v) for v in values)
        return whole if isinstance(value, (tuple, list)) else whole[0]

    return Change(change.path, change.name, plain(change.before), plain(change.after))


def versions(model: object) -> dict[str, str]:
    """Versions of fxprune, of what it writes with, and of the package that the model's class is of."""
    library = type(model).__module__.partition(".")[0]
    found = {}
    for name in dict.fromkeys(("fxprune", "torch", "safetensors", library)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
