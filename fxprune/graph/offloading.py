"""Modules whose weights others move about while they run: at rest for the time that they are looked at.

    accelerate   cpu_offload_with_hook (`enable_model_cpu_offload`), cpu_offload (`enable_sequential_cpu_offload`),
                 disk_offload, and `device_map` with parts on the CPU or a disk
    diffusers    group offloading

Within `at_rest` a module has all its weights, and its own forward: such hooks are off.  Afterwards they are on again,
and `again` gives another module the like.  A module that goes to its device as a whole is there meanwhile; of others,
which are too large for it, the CPU does the work.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fxprune.errors import InputsError

M = TypeVar("M")
HOOK, GROUPS = "_hf_hook", "_diffusers_hook"
GROUP_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
MOVERS = ("CpuOffload", "AlignDevicesHook")  # of accelerate
CONFIG = (
    "onload_device", "offload_device", "offload_type", "num_blocks_per_group", "non_blocking", "record_stream",
    "low_cpu_mem_usage", "block_modules", "exclude_kwargs",
)  # fmt: skip
ADDED = ("forward", "_old_forward", HOOK, "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")


@dataclass(frozen=True)
class Offloading:
    """How a module's weights are moved; `whole` with the module as a whole, `each` part by part, `groups` by diffusers.

    Attributes:
        device: where it runs; None: nobody moves it.
        buffers: whether buffers move, too.
        config: of diffusers' group offloading.
    """

    kind: str = ""
    device: Any = None
    buffers: bool = False
    config: Any = field(default=None, repr=False)

    def again(self, made: M, net: nn.Module) -> M:
        """Move the weights of another module alike; `made` is it, or a pipeline around it.

        A pipeline's parts take turns: it is told to chain them anew.
        """
        if self.kind == "whole" and made is not net and hasattr(made, "enable_model_cpu_offload"):
            made.enable_model_cpu_offload(device=self.device)
        elif self.kind in ("whole", "each"):
            import accelerate

            if self.kind == "whole":
                accelerate.cpu_offload_with_hook(net, self.device)
            else:
                accelerate.cpu_offload(net, self.device, offload_buffers=self.buffers)
        elif self.kind == "groups":
            self._in_groups(net)
        return made

    def _in_groups(self, net: nn.Module) -> None:
        from diffusers.hooks import apply_group_offloading

        options = {n: getattr(self.config, n) for n in CONFIG if hasattr(self.config, n)}
        apply_group_offloading(net, use_stream=self.config.stream is not None, **options)


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[Offloading]:
    """Within, a module has all its weights and nobody moves them; afterwards all is as before.

    Raises:
        InputsError: its weights lie on a disk where only diffusers finds them.
    """
    how = offloading(model)
    if not how.kind:
        yield how
        return
    if how.kind == "groups":
        _ungrouped(model, how)
        try:
            yield how
        finally:
            how.again(model, model)
        return
    was = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    _gathered(model)
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    if how.kind == "whole":
        model.to(how.device)
    here = [dict(m._parameters) for m, *_ in was]
    try:
        yield how
    finally:
        if how.kind == "whole":
            model.to(place)
        if all(_same(m._parameters, own) for (m, *_), own in zip(was, here, strict=True)):
            for module, attributes, parameters, buffers in was:
                module.__dict__.update({k: v for k, v in attributes.items() if k in ADDED})
                if how.kind == "each":
                    module._parameters.update(parameters)
                    module._buffers.update({k: b for k, b in buffers.items() if b is not None and b.is_meta})
        else:  # it was changed in place
            how.again(model, model)


def require_unmoved(model: nn.Module) -> None:
    """Raise `InputsError` where a model's weights are moved: no optimizer finds them."""
    if kind := offloading(model).kind:
        off = "load it without group offloading"
        if kind != "groups":
            off = "call pipeline.remove_all_hooks(), or accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        raise InputsError(f"the weights of this {type(model).__name__} are offloaded and cannot be trained so: {off}")


def offloading(model: nn.Module) -> Offloading:
    """How the weights of a module are moved."""
    for module in model.modules():
        hooks = [h for h in _accelerate_hooks(module) if type(h).__name__ in MOVERS]
        if whole := next((h for h in hooks if type(h).__name__ == "CpuOffload"), None):
            return Offloading("whole", torch.device(whole.execution_device))
        if each := next((h for h in hooks if getattr(h, "offload", False)), None):
            return Offloading("each", torch.device(each.execution_device), bool(each.offload_buffers))
        found = getattr(module.__dict__.get(GROUPS), "get_hook", lambda name: None)(GROUP_HOOKS[0])
        if found is not None:
            return Offloading("groups", torch.device(found.config.onload_device), config=found.config)
    return Offloading()


def _accelerate_hooks(module: nn.Module) -> list[Any]:
    hook = module.__dict__.get(HOOK)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _gathered(model: nn.Module) -> None:
    """Take accelerate's hooks off, and give every part its weights; tied ones stay one."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for module in model.modules():
        hooks = _accelerate_hooks(module)
        if not hooks or any(type(h).__name__ not in MOVERS for h in hooks):
            continue
        for hook in hooks:
            _filled(module, getattr(hook, "weights_map", None), made)
        old = module.__dict__.get("_old_forward")
        for name in ADDED:
            module.__dict__.pop(name, None)
        if not (isinstance(old, types.MethodType) and old.__func__ is type(module).forward) and old is not None:
            module.__dict__["forward"] = old


def _filled(module: nn.Module, values: Any, made: dict[tuple[int, torch.Size], Tensor]) -> None:
    tables: list[tuple[dict[str, Any], Callable[[Tensor, Any], Tensor]]] = [
        (module._parameters, lambda t, old: nn.Parameter(t, requires_grad=old.requires_grad)),
        (module._buffers, lambda t, old: t),
    ]
    for table, wrap in tables:
        for name, old in table.items():
            if values is not None and old is not None and old.is_meta and name in values:
                value = values[name].to("cpu")
                table[name] = made.setdefault((value.data_ptr(), value.shape), wrap(value, old))


def _ungrouped(model: nn.Module, how: Offloading) -> None:
    if getattr(how.config, "offload_to_disk_path", None):
        raise InputsError(
            f"the weights of this {type(model).__name__} are in groups on a disk (offload_to_disk_path): load it "
            "without group offloading, prune it, and call enable_group_offload() on the result"
        )
    registries = [m.__dict__[GROUPS] for m in model.modules() if GROUPS in m.__dict__]
    for registry in registries:
        for name in GROUP_HOOKS:
            if registry.get_hook(name) is not None:
                registry.remove_hook(name, recurse=False)
    for module in model.modules():
        if GROUPS in module.__dict__ and not module.__dict__[GROUPS].hooks:
            del module.__dict__[GROUPS]
            module.__dict__.pop("forward", None)
    model.to(how.config.offload_device)


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[k] is b[k] for k in a)
