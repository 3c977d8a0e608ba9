"""What training holds beside the weights survives the cut: optimizer state and averaged weights, sliced by the plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.arguments import MAPPING, MODULE, TENSORS, takes
from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
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

        Learning-rate schedulers that hold it stay valid.

        Raises:
            InputsError: it holds a parameter that the model does not have.
        """
        pairs = dict(self._pairs())
        names = {id(p): n for n, p in self.model.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [self._moved(optimizer, p, pairs, names) for p in group["params"]]
        return optimizer

    @takes(averaged=TENSORS)
    def tensors(self, averaged: Iterable[Tensor]) -> list[Tensor]:
        """Tensors in the order and shape of `model.parameters()`, such as diffusers' `EMAModel.shadow_params`, cut.

        Raises:
            InputsError: their number or a shape differs.
        """
        named, given = list(self.model.named_parameters()), list(averaged)
        if [tuple(t.shape) for t in given] != [tuple(p.shape) for _, p in named]:
            raise InputsError("these are not tensors of the model's parameters, one each, in their order")
        return [self._cut(name, t) for (name, _), t in zip(named, given, strict=True)]

    @takes(averaged=MAPPING)
    def named(self, averaged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the name of a parameter or buffer of the model, cut."""
        return {name: self._cut(name, t) for name, t in averaged.items()}

    @takes(averaged=MODULE)
    def module(self, averaged: nn.Module) -> nn.Module:
        """An averaged copy of the model, such as `AveragedModel.module`, pruned by the same plan."""
        forward = "graph" if "forward" in vars(self.small) else "module"
        return rewrite(averaged, self.graph, self.plan, forward=forward).model

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
    ) -> nn.Parameter:
        if id(p) not in pairs:
            raise InputsError(
                f"the optimizer holds a parameter of shape {tuple(p.shape)} that this {type(self.model).__name__} does "
                "not have; pass the optimizer of the pruned model's own parameters"
            )
        state = optimizer.state.pop(p, {})
        new = pairs[id(p)]
        if state:
            optimizer.state[new] = {k: self._state(names[id(p)], p, v) for k, v in state.items()}
        return new

    def _state(self, name: str, p: nn.Parameter, value: Any) -> Any:
        return self._cut(name, value) if isinstance(value, Tensor) and value.shape == p.shape else value

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.graph.tensors:
            return tensor
        for d, kept in enumerate(kept_positions(self.graph, name, self.plan.kept(self.graph))):
            if kept is not None:
                tensor = tensor.index_select(d, kept.to(tensor.device))
        return tensor
