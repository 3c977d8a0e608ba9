"""Where features are compared: modules that run once, the live axes of what they give, projections between widths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.masking.sites import outputs_of

Axes: TypeAlias = "tuple[tuple[int, Ints], ...]"
FRESH = 10.0  # times the rate of the weights: projections begin at the identity, and only they are new


def chosen_sites(model: nn.Module, graph: ChannelGraph | None, layers: tuple[str, ...]) -> dict[str, Axes]:
    if graph is None:
        raise InputsError("features= knows one cut only, and attention='both' makes two; prune heads, or head_dim")
    sites = feature_sites(graph)
    names = layers or tuple(_blocks(model, sites, ""))
    if not names:
        raise InputsError(
            f"no element of a ModuleList or Sequential in this {type(model).__name__} gives one tensor; name modules "
            "with Distillation(layers=...)"
        )
    known = dict(model.named_modules())
    for name in names:
        if name not in sites:
            why = "runs more than once, or gives something else than one tensor" if name in known else "is not there"
            raise InputsError(f"the layer {name!r} of this {type(model).__name__} {why}; name another one")
    return {name: sites[name] for name in names}


def _blocks(model: nn.Module, sites: Mapping[str, Axes], path: str) -> Iterator[str]:
    listed = isinstance(model, (nn.ModuleList, nn.Sequential))
    for name, child in model.named_children():
        full = f"{path}.{name}" if path else name
        if listed and full in sites:
            yield full
        else:
            yield from _blocks(child, sites, full)


def feature_sites(graph: ChannelGraph) -> dict[str, Axes]:
    """Modules that run once and give one floating-point tensor, with the live axes of it and their components."""
    out: dict[str, Axes] = {}
    for path, node in outputs_of(graph.traced.graph.nodes, graph.traced.outputs).items():
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            axes = [(d, graph.component[a]) for d, a in enumerate(graph.env[node]) if a is not None]
            out[path] = tuple((d, c) for d, c in axes if c.any())
    return out


class Projections:
    """A matrix for every layer, from the features that the student has to all of the dense model's.

        f ↦ P f      P (dense width, student's width), the identity at first, over the one live axis of the layer

    They train along with the model, at a larger rate, and are dropped when the run ends.

    Args:
        sites: layers, with their live axes; those with none or with several have no projection.
        device: of the model.
    """

    def __init__(self, sites: Mapping[str, Axes], device: torch.device) -> None:
        self.axes = {name: axes[0] for name, axes in sites.items() if len(axes) == 1}
        eyes = (torch.eye(len(components), device=device) for _, components in self.axes.values())
        self.matrices = nn.ParameterList(eyes)

    def projected(self, name: str, student: Tensor, mask: Tensor | None) -> Tensor:
        """The student's features as the dense model would have them; a channel's mask counts as wherever it is read."""
        axis, components = self.axes[name]
        matrix = self.matrices[list(self.axes).index(name)]
        if mask is not None:
            matrix = matrix * mask[torch.from_numpy(components)].to(matrix.device)
        made: Tensor = student.float().movedim(axis, -1) @ matrix.mT
        return made.movedim(-1, axis)

    def cut(self, keep: npt.NDArray[Any], optimizer: torch.optim.Optimizer | None) -> None:
        """The student has lost its channels: their columns go, in the optimizer's state, too."""
        for k, (_, components) in enumerate(self.axes.values()):
            old = self.matrices[k]
            kept = torch.from_numpy(keep[components].nonzero()[0]).to(old.device)
            new = nn.Parameter(old.detach()[:, kept].clone())
            if optimizer is not None:
                state = optimizer.state.pop(old, {})
                cut = {n: v[:, kept] if _is_like(v, old) else v for n, v in state.items()}
                _exchange(optimizer, old, new, cut)
            self.matrices[k] = new

    def load(self, values: Iterable[Tensor]) -> None:
        """Take the values of before."""
        with torch.no_grad():
            for matrix, value in zip(self.matrices, values, strict=True):
                matrix.copy_(value)

    def join(self, optimizer: torch.optim.Optimizer, own: bool) -> None:
        """Let an optimizer train them, too.

        Args:
            own: whether the optimizer is of the user's choice: its rate then stays as it is.
        """
        if not len(self.matrices):
            return
        first = optimizer.param_groups[0]
        group = {**{k: v for k, v in first.items() if k != "params"}, "params": list(self.matrices)}
        # Decay would draw the identity to zero.
        group |= {"weight_decay": 0.0} if "weight_decay" in first else {}
        optimizer.add_param_group(group | ({} if own else {"lr": FRESH * first["lr"]}))

    @contextlib.contextmanager
    def aside(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Within, the optimizer is that of the model alone; afterwards it goes on with these as before."""
        mine = set(map(id, self.matrices))
        group = next((g for g in optimizer.param_groups if g["params"] and id(g["params"][0]) in mine), None)
        if group is None:
            yield
            return
        states = {p: optimizer.state.pop(p) for p in group["params"] if p in optimizer.state}
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if g is not group]
        try:
            yield
        finally:
            optimizer.param_groups.append(group)
            optimizer.state.update(states)


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _exchange(optimizer: torch.optim.Optimizer, old: Tensor, new: nn.Parameter, state: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        if any(p is old for p in group["params"]):
            group["params"][:] = [new if p is old else p for p in group["params"]]
            if state:
                optimizer.state[new] = state
