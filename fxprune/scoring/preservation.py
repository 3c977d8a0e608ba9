"""The promise that scoring leaves a model as it was, and what is said of a criterion that breaks it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import CriterionError
from fxprune.graph.modules import cuda_devices, evaluating
from fxprune.scoring.sharded import own

WORD = 8  # bytes


@contextlib.contextmanager
def unchanged(model: nn.Module, who: str, restore: bool = False, compare: bool = True) -> Iterator[None]:
    """Within: eval mode, all parameters require grad, no `.grad`, own random state.  Afterwards all is as before.

    Weights themselves are compared by version and, with `compare`, by the sum of their bits (a write through `.data`
    has no version); with `restore` copies of them are kept, and put back where they changed, also on the way out of an
    error.

    Raises:
        CriterionError: a parameter was written to or replaced, or a hook was left on a module.
    """
    before = dict(model.named_parameters())
    versions = {n: p._version for n, p in before.items()}
    sums, hooks = _sums(before.values() if compare else ()), _hooks(model)
    copies = {n: p.detach().clone() for n, p in before.items()} if restore else {}
    written: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda_devices(model)))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluating(model))
        stack.enter_context(_buffers_kept(model))
        stack.enter_context(_requiring_grad(before.values()))
        try:
            yield
        finally:
            same = [now == was for now, was in zip(_sums(before.values()), sums, strict=True)] if compare else []
            pairs = zip(before.items(), same or [True] * len(before), strict=True)
            written += [n for (n, p), ok in pairs if p._version != versions[n] or not ok]
            with torch.no_grad():
                for n in written if restore else ():
                    before[n].copy_(copies[n])
    after = dict(model.named_parameters())
    replaced = [n for n, p in before.items() if after.get(n) is not p]
    if replaced:
        raise CriterionError(f"{who} changed the model: {replaced[0]} was replaced; a criterion must work on copies")
    if written:
        raise CriterionError(
            f"{who} changed the model: {written[0]} was written to in place; a criterion must work on copies (and a "
            f"loss must not step an optimizer){'; the weights have been put back' if restore else ''}"
        )
    if _hooks(model) != hooks:
        raise CriterionError(f"{who} changed the model: it left a hook on a module; call the handle's remove()")


@contextlib.contextmanager
def attributes_kept(model: nn.Module, always: bool = True) -> Iterator[None]:
    """What is written on modules within, hooks and new parameters too, is gone afterwards (or only after an error)."""
    before = [(m, dict(vars(m)), _dicts(m)) for m in model.modules()]
    done = False
    try:
        yield
        done = True
    finally:
        for module, attributes, dicts in before if always or not done else ():
            vars(module).clear()
            vars(module).update(attributes)
            for k, held in dicts.items():
                attributes[k].clear()
                attributes[k].update(held)


def _dicts(module: nn.Module) -> dict[str, Any]:
    return {k: v.copy() for k, v in vars(module).items() if type(v) in (dict, OrderedDict)}


def _sums(tensors: Iterable[Tensor]) -> list[int]:
    """The sum of each tensor's bits, which changes where any element does (but for rare cancellations)."""
    with torch.no_grad():
        sums = [_sum(own(t).detach()) for t in tensors]
        # One transfer for all, not one each.
        found: list[int] = torch.stack([s.to(sums[0].device) for s in sums]).tolist() if sums else []
    return found


def _sum(tensor: Tensor) -> Tensor:
    """As integers of eight bytes: as fast as memory, where a sum of half-precision numbers takes twenty times that."""
    if tensor.is_meta:
        return torch.zeros((), dtype=torch.int64)
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_complex():
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        return real.sum(dtype=torch.promote_types(real.dtype, torch.float32)).double().view(torch.int64)
    data = tensor.reshape(-1).view(torch.uint8)
    start = min(len(data), -data.storage_offset() % WORD)
    stop = start + (len(data) - start) // WORD * WORD
    ends = data[:start].sum(dtype=torch.int64) + data[stop:].sum(dtype=torch.int64)
    return data[start:stop].view(torch.int64).sum() + ends


def _hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
        for m in model.modules()
    )


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    held = [(m, k, b) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    saved = [b.detach().clone() for _, _, b in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, key, buffer), value in zip(held, saved, strict=True):
                module._buffers[key] = buffer
                buffer.copy_(value)


@contextlib.contextmanager
def _requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    was = [(p, p.requires_grad, p.grad) for p in parameters]
    try:
        for p, _, _ in was:
            p.grad = None
            if p.is_floating_point():
                p.requires_grad_(True)
        yield
    finally:
        for p, required, grad in was:
            p.requires_grad_(required)
            p.grad = grad
