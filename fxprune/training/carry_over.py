"""What training holds beside the weights survives the cut: optimizer state and averaged weights, sliced by the plan."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.arguments import MAPPING, MODULE, TENSORS, takes, tensors
from fxprune.errors import InputsError, PlanError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.sharding import full, laid_out
from fxprune.planning.plan import Plan
from fxprune.rewriting.rewrite import rewrite
from fxprune.rewriting.slicing import kept_positions


@dataclass(frozen=True, eq=False)
class Carry:
    """The way from a model to its pruned copy.

    Attributes:
        model, small: before and after.
        graph, plan: what was removed.
    """

    model: nn.Module
    small: nn.Module
    graph: ChannelGraph
    plan: Plan

    @takes(optimizer=torch.optim.Optimizer)
    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Let an optimizer of the model go on with the small one, in place: its state is cut like the parameters.

        State of another shape is cut along the axes that it has in common with its parameter (Adafactor's rows and
        columns). Where it does not show which these are, the optimizer begins anew for that parameter, and a warning
        says so. Learning-rate schedulers that hold the optimizer stay valid.

        Raises:
            InputsError: it holds a parameter that the model does not have, or one state for several parameters (LBFGS).
        """
        _refuse_joint(optimizer)
        pairs = dict(self._pairs())
        names = {id(p): n for n, p in self.model.named_parameters()}
        anew: list[str] = []
        for group in optimizer.param_groups:
            group["params"][:] = [self._moved(optimizer, p, pairs, names, anew) for p in group["params"]]
        if anew:
            warnings.warn(
                f"{type(optimizer).__name__} begins anew for {len(anew)} of {len(names)} parameters ({anew[0]}, ...): "
                "its state for them has shapes that do not show which positions go",
                stacklevel=2,
            )
        return optimizer

    @takes(averaged=TENSORS)
    def tensors(self, averaged: Iterable[Tensor]) -> list[Tensor]:
        """Tensors in the order and shape of `model.parameters()`, such as diffusers' `EMAModel.shadow_params`, cut.

        Raises:
            InputsError: their number or a shape differs.
        """
        named, given = list(self.model.named_parameters()), tensors("averaged", averaged)
        if [tuple(t.shape) for t in given] != [tuple(p.shape) for _, p in named]:
            raise InputsError("these are not tensors of the model's parameters, one each, in their order")
        return [self._cut(name, t) for (name, _), t in zip(named, given, strict=True)]

    @takes(averaged=MAPPING)
    def named(self, averaged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the name of a parameter or buffer of the model, cut.

        Raises:
            InputsError: a name or a shape is none of the model's.
        """
        held: dict[str, Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, t in zip(averaged, tensors("averaged", averaged.values()), strict=True):
            if name not in held or t.shape != held[name].shape:
                raise InputsError(
                    f"averaged has {name!r} of shape {tuple(t.shape)}, which this {type(self.model).__name__} has not"
                )
        return {name: self._cut(name, t) for name, t in averaged.items()}

    @takes(averaged=MODULE)
    def module(self, averaged: nn.Module) -> nn.Module:
        """An averaged copy of the model, such as `AveragedModel.module`, pruned by the same plan."""
        forward = "graph" if "forward" in vars(self.small) else "module"
        try:
            return rewrite(averaged, self.graph, self.plan, forward=forward).model
        except PlanError as e:
            raise InputsError(f"averaged= is no copy of this {type(self.model).__name__}: {e}") from e

    def _pairs(self) -> Iterator[tuple[int, nn.Parameter]]:
        small = dict(self.small.named_parameters())
        for name, p in self.model.named_parameters():
            yield id(p), small[name]

    def _moved(
        self,
        optimizer: torch.optim.Optimizer,
        p: nn.Parameter,
        pairs: Mapping[int, nn.Parameter],
        names: Mapping[int, str],
        anew: list[str],
    ) -> nn.Parameter:
        if id(p) not in pairs:
            raise InputsError(
                f"the optimizer holds a parameter of shape {tuple(p.shape)} that this {type(self.model).__name__} does "
                "not have; pass the optimizer of the pruned model's own parameters"
            )
        state = optimizer.state.pop(p, {})
        new = pairs[id(p)]
        name = names[id(p)]
        try:
            if state:
                optimizer.state[new] = {k: self._laid_out(self._state(name, p, v), new) for k, v in state.items()}
        except _Unclear:
            anew.append(name)
        return new

    def _state(self, name: str, p: nn.Parameter, value: Any) -> Any:
        """An entry of a parameter's state, cut like it.

        Raises:
            _Unclear: it holds tensors of shapes that do not show how.
        """
        kept = self._kept(name)
        if all(k is None for k in kept) or not _tensors(value):
            return value
        if not isinstance(value, Tensor):
            raise _Unclear
        if value.numel() == 1:
            return value
        value = full(value)
        cuts = {
            tuple(None if d is None else _key(kept[d]) for d in axes): axes
            for axes in _axes(tuple(value.shape), tuple(p.shape))
        }
        if len(cuts) != 1:
            raise _Unclear
        (axes,) = cuts.values()
        for d, axis in enumerate(axes):
            if axis is not None and (positions := kept[axis]) is not None:
                value = value.index_select(d, positions.to(value.device))
        return value

    def _laid_out(self, value: Any, new: nn.Parameter) -> Any:
        """Shards of a state put together; shared out again where the small model's parameters are."""
        if not isinstance(value, Tensor):
            return value
        return laid_out(full(value), new) if value.dim() else full(value)

    def _kept(self, name: str) -> list[Tensor | None]:
        """For every axis of a tensor the positions that stay; None where all do, no axes where it is unused."""
        if name not in self.graph.tensors:
            return []
        return kept_positions(self.graph, name, self.plan.kept(self.graph))

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        tensor = full(tensor)
        for d, kept in enumerate(self._kept(name)):
            if kept is not None:
                tensor = tensor.index_select(d, kept.to(tensor.device))
        return laid_out(tensor, dict(self.small.named_parameters()).get(name, tensor))


class _Unclear(Exception):
    """A state's shape does not show how it goes with its parameter's."""


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in an entry of a state."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _joint(state: Tensor, p: Tensor) -> bool:
    """Whether it holds more than one parameter's; a square matrix may be that of pairs of positions (SOAP, Shampoo)."""
    paired = state.dim() == 2 and state.shape[0] == state.shape[1] <= p.numel()
    return state.numel() > p.numel() and not paired


def _refuse_joint(optimizer: torch.optim.Optimizer) -> None:
    for p, state in optimizer.state.items():
        if any(_joint(t, p) for t in _tensors(state)):
            raise InputsError(
                f"{type(optimizer).__name__} keeps one state for several parameters together, which cannot be cut; "
                "make a new one of the small model's parameters()"
            )


def _key(positions: Tensor | None) -> tuple[int, ...] | None:
    return None if positions is None else tuple(positions.tolist())


def _axes(shape: tuple[int, ...], whole: tuple[int, ...]) -> list[tuple[int | None, ...]]:
    """The ways in which axes of a state may be those of its parameter, in order; None stands for an axis of size one.

    As many axes, some of size one (sums that kept them), or fewer (sums that did not).
    """
    if len(shape) == len(whole):
        fits = all(s in (1, n) for s, n in zip(shape, whole, strict=True))
        return [tuple(d if s == n else None for d, (s, n) in enumerate(zip(shape, whole, strict=True)))] if fits else []
    chosen = itertools.combinations(range(len(whole)), len(shape))
    return [axes for axes in chosen if tuple(whole[d] for d in axes) == shape]
