"""Whether a model computes something else when it trains: its torch calls in both modes, side by side.

Both runs take place on tensors without values where that works, so they cost little beside a trace.  What dropout and
the like do by themselves is no difference: they touch no width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.graph.modules import Inputs, evaluating, same_draws, training
from fxprune.graph.quiet import quiet
from fxprune.graph.recording import open_functional
from fxprune.graph.untouched import same_buffers, untouched

Call: TypeAlias = "tuple[Any, ...]"
Scope: TypeAlias = "Callable[[nn.Module], contextlib.AbstractContextManager[None]]"


class _Calls(TorchFunctionMode):
    """Within, calls that give tensors are noted: name, shapes of tensors, and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        made = [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        if made and "dropout" not in name and any(x.dim() for x in made):
            self.seen.append((name, *_facts(name, (args, kwargs)), *_facts("", out)))
        return out


def _facts(name: str, values: Any) -> Iterator[Any]:
    """Shapes, sizes and numbers among values; switches, and the rate of an attention's dropout, left out."""
    for x in pytree.tree_leaves(values):
        if isinstance(x, torch.Tensor):
            yield tuple(map(str, x.shape))
        elif isinstance(x, (int, float)) and not isinstance(x, bool) and name != "scaled_dot_product_attention":
            yield x


def differs(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model makes other torch calls, or returns something else, in train mode.

    Raises:
        Exception: what the model raises in train mode on these inputs.
    """
    if all(type(m).__module__.startswith("torch.") for m in model.modules()):
        return False
    usual = _calls(model, inputs, evaluating)
    return usual is not None and usual != _calls(model, inputs, training, raises=True)


def _calls(model: nn.Module, inputs: Inputs, mode: Scope, raises: bool = False) -> list[Call] | None:
    """The calls of a run, and what it returned; None where it fails (unless that `raises`)."""
    runs = (_fake_run, _run)
    for run in runs:
        calls = _Calls()
        try:
            with mode(model), untouched(model), same_buffers(model), same_draws(), _plain_paths(), calls:
                out = run(model, copied(inputs))
        except Exception:
            if run is runs[-1] and raises:
                raise
            continue
        return [*calls.seen, (str(pytree.tree_structure(out)), *_facts("", out))]
    return None


@contextlib.contextmanager
def _plain_paths() -> Iterator[None]:
    """Within, no fused inference kernel stands for the layers of a transformer, and torch's functions are open."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), open_functional(), quiet():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _fake_run(model: nn.Module, inputs: Inputs) -> Any:
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    fake: Callable[[Any], Any] = lambda x: fakes.from_tensor(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
    state = {n: fake(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    args, kwargs = pytree.tree_map(fake, inputs)
    with fakes:
        return torch.func.functional_call(model, state, args, kwargs)


def _run(model: nn.Module, inputs: Inputs) -> Any:
    return model(*inputs[0], **inputs[1])


def copied(inputs: Inputs) -> Inputs:
    """The inputs again: tensors cloned, and objects that hold some (a cache), which a forward may change."""

    def copy_of(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.clone()
        with contextlib.suppress(Exception):
            return copy.deepcopy(x)
        return x

    again: Inputs = pytree.tree_map(copy_of, inputs)
    return again


def larger(inputs: Inputs) -> Inputs:
    """The inputs with one more sample in the batch, as far as one can tell: batch norms cannot train on one."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor) and x.dim()]
    batch = tensors[0].shape[0] if tensors else 0

    def one_more(x: Any) -> Any:
        return torch.cat([x, x[:1]]) if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == batch else x

    more: Inputs = pytree.tree_map(one_more, inputs)
    return more
