"""Calls of a model: written down as they happen, changed in an argument, made again with the same random numbers."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError
from fxprune.graph.program import Program
from fxprune.masking.sites import outputs_of
from fxprune.rewriting.graph_forward import program_now, telling
from fxprune.scoring.randomness import rng_state, set_rng_state
from fxprune.training.terms import is_float

STEPS = {torch.float64: 1e-3, torch.float32: 1e-2}  # of the input's size; of narrower types, which round, COARSE
COARSE = 1e-1


@dataclass(frozen=True)
class Call:
    """One call of a model.

    Attributes:
        args, kwargs: what it was given.
        out: what it gave.
        features: outputs of inner modules, by name.
        random: the random numbers that it began with; empty where nobody asks.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    random: Mapping[str, Any] = field(default_factory=dict)

    def argument(self, model: nn.Module, name: str) -> Any:
        """An argument of forward by its name; None where it was not given."""
        at = _position(model, name)
        return self.args[at] if at is not None and at < len(self.args) else self.kwargs.get(name)

    def changed(self, model: nn.Module, name: str, value: Any) -> Call:
        """The call with another value of an argument that it has."""
        at = _position(model, name)
        if at is not None and at < len(self.args):
            return replace(self, args=(*self.args[:at], value, *self.args[at + 1 :]))
        return replace(self, kwargs={**self.kwargs, name: value})

    def unconditional(self, model: nn.Module, conditions: Mapping[str, Any]) -> Call:
        """The call with other conditions: numbers, or tensors that fit those it has (one sample stands for all).

        Raises:
            InputsError: the call has no such argument, or the values do not fit it.
        """
        call = self
        for name, value in conditions.items():
            given = self.argument(model, name)
            call = call.changed(model, name, _like(f"unconditional[{name!r}]", value, given, type(model).__name__))
        return call

    def moved(self, model: nn.Module) -> tuple[Call, float]:
        """The call with its first floating-point input of two axes or more a step away, and the step's length.

        The direction is drawn anew, a standard normal number for each of the input's; the step is a share of the
        input's root mean square.

        Raises:
            InputsError: there is no such input.
        """
        places: list[tuple[int | str, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        at, x = next(((k, v) for k, v in places if is_float(v) and v.dim() > 1), (None, None))
        if at is None or x is None:
            raise InputsError(
                f"jacobian= needs an input to move, and this call of {type(model).__name__} has no floating-point "
                "tensor of two axes or more; leave jacobian= out"
            )
        half = torch.is_autocast_enabled(x.device.type) or x.dtype not in STEPS
        step = (COARSE if half else STEPS[x.dtype]) * (float(x.detach().float().square().mean().sqrt()) or 1.0)
        there = x + step * torch.randn_like(x)
        if isinstance(at, str):
            return replace(self, kwargs={**self.kwargs, at: there}), step
        return replace(self, args=(*self.args[:at], there, *self.args[at + 1 :])), step


def again(model: nn.Module, call: Call) -> Any:
    """What a model gives for a call, made with the random numbers of the call; its buffers stay as they are."""
    if not call.random:
        with buffers_aside(model):
            return model(*call.args, **call.kwargs)
    now = rng_state()
    set_rng_state(call.random)
    try:
        with buffers_aside(model):
            return model(*call.args, **call.kwargs)
    finally:
        set_rng_state(now)


@contextlib.contextmanager
def buffers_aside(model: nn.Module) -> Iterator[None]:
    """Within, the model works on copies of its buffers.

    What a backward pass to come needs of them must not be written over, so that putting values back will not do.
    """
    held = [(m._buffers, k, b) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    copies = {id(b): b.clone() for _, _, b in held} if model.training else {}
    for own, k, b in held:
        own[k] = copies.get(id(b), b)
    try:
        yield
    finally:
        for own, k, b in held:
            own[k] = b


@contextlib.contextmanager
def watched(model: nn.Module, layers: Iterable[str], random: bool = False) -> Iterator[list[Call]]:
    """Within, every call of the model is written down.

    Args:
        model: who is called.
        layers: inner modules whose outputs are kept; of a model that runs its rewritten graph, by the graph's nodes.
        random: keep the random numbers that calls begin with.
    """
    calls: list[Call] = []
    now: dict[str, Tensor] = {}
    starts: list[Mapping[str, Any]] = []

    def called(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        calls.append(Call(args, kwargs, out, dict(now), starts.pop() if random else {}))
        now.clear()

    def keeping(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _args, out: now.__setitem__(name, _only(name, out))

    program = program_now(model)
    with contextlib.ExitStack() as stack:
        if program is None:
            for name in layers:
                stack.callback(model.get_submodule(name).register_forward_hook(keeping(name)).remove)
        else:
            nodes = _nodes(model, program, layers)
            stack.enter_context(
                telling(model, lambda node, out: now.update({n: _only(n, out) for n in nodes.get(node, ())}))
            )
        if random:
            before = model.register_forward_pre_hook(lambda _module, _args: starts.append(rng_state()))
            stack.callback(before.remove)
        stack.callback(model.register_forward_hook(called, with_kwargs=True).remove)
        yield calls


def _nodes(model: nn.Module, program: Program, layers: Iterable[str]) -> Mapping[fx.Node, list[str]]:
    """The layers by what they give in the graph that a model runs."""
    found = outputs_of(program.nodes, program.outputs)
    out: dict[fx.Node, list[str]] = defaultdict(list)
    for name in layers:
        if name not in found:
            raise InputsError(
                f"the layer {name!r} gives no one value in the rewritten graph that this {type(model).__name__} runs; "
                "name others with Distillation(layers=...)"
            )
        out[found[name]].append(name)
    return out


def _only(name: str, out: Any) -> Tensor:
    """The tensor that a layer gives, be it packed: (x, (x,)), as a UNet's last block gives it."""
    found = {id(t): t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)}
    if len(found) != 1:
        raise InputsError(
            f"the layer {name!r} gives {len(found)} tensors, and features are of one; name others with "
            "Distillation(layers=...)"
        )
    return next(iter(found.values()))


def _position(model: nn.Module, name: str) -> int | None:
    names = list(inspect.signature(model.forward).parameters)
    return names.index(name) if name in names else None


def _like(where: str, value: Any, given: Any, model: str) -> Any:
    """A value in the shape, type and place of what a call has."""
    if isinstance(value, Mapping) and isinstance(given, Mapping):
        return {**given, **{k: _like(f"{where}[{k!r}]", v, given.get(k), model) for k, v in value.items()}}
    if not isinstance(given, Tensor):
        raise InputsError(f"{where}: the loss calls the {model} without such a tensor; name one that it gives")
    try:
        new = torch.as_tensor(value).to(given)
        return new.expand_as(given).clone()
    except (RuntimeError, TypeError, ValueError) as e:
        raise InputsError(f"{where} does not fit what the loss gives the {model}, {tuple(given.shape)}: {e}") from e
