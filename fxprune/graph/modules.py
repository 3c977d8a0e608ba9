"""Questions to a module, and scopes around one: its inputs, the names of its tensors, eval mode, seeds."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fxprune.errors import InputsError

ExampleInputs: TypeAlias = Any
Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` (FSDP2) has shared out the parameters over processes."""
    return any(cls.__name__ == "FSDPModule" for m in model.modules() for cls in type(m).__mro__)


def require_whole(model: nn.Module, shards: bool = False) -> None:
    """Raise `InputsError` where a model is not one of Python's own, with parameters that are all here.

    What stands around or in place of a module holds no Python that could follow; sharded parameters (FSDP's DTensors)
    no process has whole, which scoring alone can do without (`shards`); those made in inference mode nothing can trace
    or train.
    """
    kind = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise InputsError("the model is wrapped in DistributedDataParallel: prune model.module, and wrap the small one")
    if isinstance(model, torch.jit.ScriptModule):
        kind = f"{kind} is compiled by torch.jit to TorchScript"
        raise InputsError(f"this {kind}, whose code is fixed: prune the module that it was made from")
    for path, module in model.named_modules():
        _require_plain(kind, path, module)
    try:
        with evaluating(model):
            pass
    except NotImplementedError as e:
        raise InputsError(f"this {kind} has no eval mode ({e}): prune the module that it was exported from") from e
    named = [*model.named_parameters(), *model.named_buffers()]
    if made := next((n for n, t in named if t.is_inference()), ""):
        raise InputsError(
            f"{made} was made inside torch.inference_mode(), and can neither be traced nor trained: make or load this "
            f"{kind} outside of it, or pass copy.deepcopy(model) made outside"
        )
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise InputsError(
            f"the parameters of this {kind} are shared out by DeepSpeed (ZeRO-3): prune the whole model before "
            "deepspeed.initialize(), and hand it the small one"
        )
    if any(cls.__name__ == "FullyShardedDataParallel" for m in model.modules() for cls in type(m).__mro__):
        raise InputsError(
            f"this {kind} is wrapped in FullyShardedDataParallel (FSDP1): shard the model with fully_shard() (FSDP2), "
            "which leaves its modules and names as they are, or prune it before you wrap it"
        )
    if any(_split(p) for p in model.parameters()) or (not sharded(model) and any(map(in_shards, model.parameters()))):
        raise InputsError(
            f"the parameters of this {kind} are split over devices (tensor parallel): prune the whole model, and "
            "parallelize the small one"
        )
    if sharded(model) and not shards:
        raise InputsError(
            f"the parameters of this {kind} are sharded (FSDP), and no process has one whole: prune(), Pruner "
            "and score() take it so; here pass fxprune.whole(model), which puts them together in each process"
        )


def in_shards(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "full_tensor")


def _split(tensor: Any) -> bool:
    """Whether a tensor is in shards along several axes of its mesh, or in sums: tensor parallel beside FSDP."""
    places = getattr(tensor, "placements", ())
    return sum(not place.is_replicate() for place in places) > 1 or any(place.is_partial() for place in places)


def _require_plain(kind: str, path: str, module: nn.Module) -> None:
    """Raise `InputsError` where a part is compiled, quantized, or not made yet."""
    held = [*module.__dict__.values(), *module._buffers.values()]
    if isinstance(module, torch.jit.ScriptModule):
        what = (
            "is compiled by torch.jit to TorchScript, whose code is fixed: put the module there that it was made from"
        )
    elif any(
        isinstance(t, (UninitializedParameter, UninitializedBuffer)) for t in (*module._parameters.values(), *held)
    ):
        what = "has no weights before it has run: call the model once"
    elif any(isinstance(v, torch.ScriptObject) for v in held):
        what = "is quantized, its weights packed: prune the float model, and quantize the small one"
    else:
        return
    raise InputsError(f"{path or 'the model'} of this {kind} {what}")


def as_inputs(example: ExampleInputs) -> Inputs:
    """Normalise example inputs to `(args, kwargs)`.

    Args:
        example: a tensor, a tuple or list of positional arguments, a dict of keyword arguments, or the pair
            `(args_tuple, kwargs_dict)`.

    Raises:
        InputsError: for anything else.
    """
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if (
        isinstance(example, tuple)
        and len(example) == 2
        and isinstance(example[0], (tuple, list))
        and isinstance(example[1], Mapping)
    ):
        return tuple(example[0]), dict(example[1])
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise InputsError(
        f"example_inputs is a {type(example).__name__}; pass a tensor, a tuple of positional arguments, a dict of "
        "keyword arguments, or the pair (args_tuple, kwargs_dict)"
    )


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Within, draws of torch, numpy and Python start from one seed, so that a forward that samples can be compared."""
    was = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(was[0])
            np.random.set_state(was[1])


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Within, no fused inference kernel stands for the layers of a transformer: it gives zeros where padding is."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on the CPU by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, every module of the model is in eval mode; afterwards each is as it was."""
    was = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for m, training in was:
            m.training = training


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Within, the model is in train mode, as its own `train()` sets it, and its code that asks is told that gradients
    are on; afterwards every module is as it was."""
    was = [(m, m.training) for m in model.modules()]
    asked, here = torch.is_grad_enabled, threading.get_ident()

    def with_gradients() -> bool:
        own = str(sys._getframe(1).f_globals.get("__name__", "")).startswith(("torch.", "fxprune."))
        if own or threading.get_ident() != here:
            return asked()
        return True  # as it is in training, which nothing here computes gradients for

    try:
        model.train()
        torch.is_grad_enabled = with_gradients
        yield
    finally:
        torch.is_grad_enabled = asked
        for m, mode in was:
            m.training = mode


def tensor_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> its canonical (first) name; tied tensors share one."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(t), name) for name, t in named}


def lineage(model: nn.Module) -> dict[str, dict[str, type]]:
    """Canonical name of every tensor -> all its names, and the paths of all modules that it lies in, with classes."""
    modules = dict(model.named_modules(remove_duplicate=False))
    out: dict[str, dict[str, type]] = {}
    for name, first in tensor_names(model).items():
        found = out.setdefault(first, {"": type(model)})
        parts = name.split(".")
        paths = (".".join(parts[:i]) for i in range(1, len(parts)))
        found.update({path: type(modules[path]) for path in paths})
        found[name] = torch.Tensor
    return out


def cuda_devices(model: nn.Module) -> list[int]:
    devices = {t.device for t in itertools.chain(model.parameters(), model.buffers()) if t.is_cuda}
    return sorted(d.index or 0 for d in devices)


def seed_torch(model: nn.Module, seed: int) -> None:
    """Seed torch's generator of the CPU and of the model's devices, and no other."""
    torch.default_generator.manual_seed(seed)
    for index in cuda_devices(model):
        torch.cuda.default_generators[index].manual_seed(seed)


def comes_from(given: object, package: str) -> bool:
    """Whether an object's class, or one that it inherits from, is defined in a package.  Imports nothing."""
    names = (c.__module__ for c in type(given).__mro__)
    return any(name == package or name.startswith(f"{package}.") for name in names)
