"""Whether a model computes something else when it trains: its torch calls in both modes, side by side.

They are compared only where code other than torch's own reads `training` (which is seen while eval mode is traced), or
a class has a `train` of its own.  What dropout and the like do by themselves is no difference: they touch no width.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.graph.modules import Inputs, evaluating, same_draws, training, unfused
from fxprune.graph.packing import called, copied, unpacked
from fxprune.graph.quiet import quiet
from fxprune.graph.recording import open_functional
from fxprune.graph.untouched import same_buffers, same_parameters, untouched

_OWN = ("torch.", "fxprune.graph.")
Call: TypeAlias = "tuple[Any, ...]"
Run: TypeAlias = "Callable[[nn.Module, Inputs], Any]"
Scope: TypeAlias = "Callable[[nn.Module], contextlib.AbstractContextManager[None]]"


@dataclass
class Watch:
    """Who reads a module's `training` while a model runs.

    Attributes:
        read: whether code outside torch did.
    """

    read: bool = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within, such reads (of this thread) are seen: `training` is a property of every module meanwhile."""
        thread = threading.get_ident()

        def get(module: nn.Module) -> bool:
            foreign = not str(sys._getframe(1).f_globals.get("__name__", "")).startswith(_OWN)
            self.read |= foreign and threading.get_ident() == thread
            return bool(module.__dict__.get("training", True))

        def put(module: nn.Module, mode: bool) -> None:
            module.__dict__["training"] = mode

        nn.Module.training = property(get, put)  # type: ignore[assignment]
        try:
            yield
        finally:
            del nn.Module.training


class _Calls(TorchFunctionMode):
    """Within, calls that give tensors, or write into one, are noted: name, shapes of tensors, and numbers.

    What drops samples or layers (one number a sample, times the whole of it) is left out as dropout is.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.seen: list[Call] = []
        self.batch = batch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        made = [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        little = name != "__setitem__" and all(map(self._a_number_each, made))
        if "dropout" not in name and not little and not self._scales(name, args):
            self.seen.append((name, *_facts(name, (args, kwargs)), *_facts("", out)))
        return out

    def _a_number_each(self, x: Any) -> bool:
        """Whether a tensor holds one number for every sample, or for all."""
        return x.dim() == 0 or (x.dim() > 1 and x.shape[0] in (1, self.batch) and all(s == 1 for s in x.shape[1:]))

    def _scales(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether a call multiplies samples by such numbers."""
        pair = [x for x in args if isinstance(x, torch.Tensor)]
        alike = len(pair) == 2 and pair[0].dim() == pair[1].dim()
        return alike and name.strip("_") in ("mul", "rmul", "imul", "div") and any(map(self._a_number_each, pair))


def _facts(name: str, values: Any) -> Iterator[Any]:
    """Shapes, sizes and numbers among values; switches, and the rate of an attention's dropout, left out."""
    for x in pytree.tree_leaves(values):
        if isinstance(x, torch.Tensor):
            yield tuple(map(str, x.shape))
        elif isinstance(x, (int, float)) and not isinstance(x, bool) and name != "scaled_dot_product_attention":
            yield x


def differs(model: nn.Module, inputs: Inputs, watch: Watch, light: bool = True) -> bool:
    """Whether a model makes other torch calls, or returns something else, in train mode.

    Args:
        watch: that saw it run in eval mode.
        light: whether a run costs little; otherwise tensors without values are tried first.

    Raises:
        Exception: what the model raises in train mode on these inputs.
    """
    own = any(not type(m).train.__module__.startswith("torch.") for m in model.modules())
    if not watch.read and not own:
        return False
    runs = (_run,) if light else (_fake_run, _run)
    usual = _calls(model, inputs, evaluating, runs)
    return usual is not None and usual != _calls(model, inputs, training, runs, raises=True)


def _calls(
    model: nn.Module, inputs: Inputs, mode: Scope, runs: Sequence[Run], raises: bool = False
) -> list[Call] | None:
    """The calls of a run, and what it returned; None where it fails (unless that `raises`)."""
    for run in runs:
        calls = _Calls(batch_of(inputs))
        try:
            with (
                mode(model),
                untouched(model),
                same_buffers(model),
                same_parameters(model),
                same_draws(),
                _plain_paths(),
                calls,
            ):
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
    with unfused(), torch.no_grad(), open_functional(), quiet():
        yield


def _fake_run(model: nn.Module, inputs: Inputs) -> Any:
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    fake: Callable[[Any], Any] = lambda x: fakes.from_tensor(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
    state = {n: fake(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    args, kwargs = pytree.tree_map(fake, inputs)
    with fakes:
        return torch.func.functional_call(model, state, *unpacked((args, kwargs)))


def _run(model: nn.Module, inputs: Inputs) -> Any:
    return called(model, inputs)


def batch_of(inputs: Inputs) -> int:
    """The size of the batch, as far as one can tell: the first axis of the first tensor; 0 where there is none."""
    tensors = (x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor) and x.dim())
    return next((int(x.shape[0]) for x in tensors), 0)


def larger(inputs: Inputs) -> Inputs:
    """The inputs with one more sample in the batch: batch norms cannot train on one."""
    batch = batch_of(inputs)

    def one_more(x: Any) -> Any:
        dense = isinstance(x, torch.Tensor) and x.layout is torch.strided
        return torch.cat([x, x[:1]]) if dense and x.dim() and x.shape[0] == batch else x

    more: Inputs = pytree.tree_map(one_more, inputs)
    return more
