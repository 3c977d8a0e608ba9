"""Proofs that a pruned model is right.

masked = dense            the original model with the removed channels masked computes what the dense model computes
permutation certificate   permuting a group's channels, in every slice, leaves the network's function unchanged
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.errors import VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modes import larger
from fxprune.graph.modules import deep_copy
from fxprune.graph.outputs import Outputs
from fxprune.graph.packing import copied
from fxprune.graph.untouched import same_buffers
from fxprune.masking.comparison import counted, relative_error, tolerance
from fxprune.masking.masked_run import run_masked
from fxprune.masking.settled import Settled
from fxprune.planning.plan import Plan


@dataclass(frozen=True)
class Check:
    """One comparison: its name, the largest relative error and the tolerance."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{self.name}: relative error {self.error:.1e} ({'ok' if self.ok else f'over {self.tolerance:.0e}'})"


def check_dense(model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan) -> Check:
    """Compare the dense model with the masked original on the example inputs.

    Raises:
        VerifyError: where the dense model does not run.
    """
    if meta := next((n for n, p in model.named_parameters() if p.is_meta), ""):
        raise VerifyError(
            f"nothing can be compared: {meta} of this {type(model).__name__} is on the meta device and has no values; "
            "load the weights first, or pass verify=False"
        )
    return _masked_is_dense(model, small, graph, plan, "")


def check_training(model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan) -> tuple[Check, ...]:
    """The same in train mode, where the model computes something else there: dropout drops nothing, and draws give one
    constant, in both.  Where train mode was not traced, the dense model has to run wherever the original does.

    Raises:
        VerifyError: where the dense model does not run.
    """
    if graph.unseen:
        _trains_alike(model, small, graph)
    return tuple(_masked_is_dense(model, small, view, plan, " in train mode") for view in graph.modes[1:])


def _masked_is_dense(model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, mode: str) -> Check:
    traced = graph.traced
    name, near = f"masked = dense{mode}", tolerance(model, traced)
    with Settled() if traced.in_training else contextlib.nullcontext(), same_buffers(model):
        reference = run_masked(graph, model, copied(traced.example), plan.kept(graph), plan.norms, plan.blocks)
    try:
        got = counted(small, traced)
    except Exception as e:
        raise VerifyError(f"the pruned {type(small).__name__} does not run{mode}: {type(e).__name__}: {e}") from e
    return Check(name, relative_error(got, reference) if len(got) == len(reference) else float("inf"), near)


def _trains_alike(model: nn.Module, small: nn.Module, graph: ChannelGraph) -> None:
    view = replace(graph.traced, in_training=True, returned=Outputs())
    for inputs in (view.example, larger(view.example)):
        try:
            counted(model, view, inputs)
        except Exception:  # noqa: BLE001 - it trains on other inputs: nothing can be said
            continue
        try:
            counted(small, view, inputs)
        except Exception as e:
            raise VerifyError(
                f"the pruned {type(small).__name__} does not run in train mode: {type(e).__name__}: {e}; train mode "
                f"could not be traced ({graph.unseen}): keep what it reads with ignore="
            ) from e
        return


def same_batches(model: nn.Module, small: nn.Module, graph: ChannelGraph) -> bool:
    """Whether the dense model takes a larger batch, with outputs of the same shapes, wherever the original does."""

    def shapes(net: nn.Module) -> list[Any] | None:
        try:
            return [getattr(x, "shape", None) for x in counted(net, graph.traced, larger(graph.traced.example))]
        except Exception:  # noqa: BLE001 - any failure is the answer
            return None

    wanted = shapes(model)
    return wanted is None or shapes(small) == wanted


# ---- permutation certificate ----------------------------------------------------------------------------------------


def permutation(graph: ChannelGraph, seed: int = 0) -> dict[int, np.ndarray[Any, Any]]:
    """For every group a random order of its channels that moves none across the groups of a group norm."""
    rng = np.random.default_rng(seed)
    cell = np.zeros(int(graph.component.max()) + 1, np.uint64)
    for norm in graph.facts.norm_groups:
        component = graph.component[norm.axis]
        block = np.arange(len(component)) // (len(component) // norm.groups)
        keys = rng.integers(1, 2**62, size=norm.groups).astype(np.uint64)
        np.add.at(cell, component, keys[block])
    out = {}
    for g, group in enumerate(graph.groups):
        order = np.arange(len(group))
        cells = cell[group.components]
        for c in np.unique(cells):
            at = np.flatnonzero(cells == c)
            order[at] = rng.permutation(at)
        out[g] = order
    return out


def permute_(model: nn.Module, graph: ChannelGraph, orders: dict[int, np.ndarray[Any, Any]]) -> nn.Module:
    """Permute the channels of a model in place, consistently in every slice."""
    named = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    per_axis: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    for g, order in orders.items():
        for s in graph.groups[g].slices:
            index = per_axis.setdefault((s.tensor, s.axis), np.arange(graph.shapes[s.tensor][s.axis]))
            index[s.positions.reshape(-1)] = s.positions[order].reshape(-1)
    with torch.no_grad():
        for (name, axis), index in per_axis.items():
            tensor = named[name]
            tensor.copy_(tensor.index_select(axis, torch.from_numpy(index).to(tensor.device)).clone())
    return model


def check_permutation(model: nn.Module, graph: ChannelGraph, seed: int = 0) -> Check:
    """The permutation certificate: needs no data, catches a missed coupling, a wrong offset, a wrong head split."""
    permuted = permute_(deep_copy(model), graph, permutation(graph, seed))
    modes = [view.traced for view in graph.modes]
    errors = [relative_error(counted(permuted, mode), counted(model, mode)) for mode in modes]
    return Check("permutation", max(errors), max(tolerance(model, mode) for mode in modes))


def verify(model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, *, seed: int = 0) -> tuple[Check, ...]:
    """Both proofs: the permutation certificate of the graph, and masked = dense for the plan; the latter in train mode
    too, where the model computes something else there.

    Raises:
        VerifyError: where one of them fails.
    """
    checks: tuple[Check, ...] = (check_permutation(model, graph, seed), check_dense(model, small, graph, plan))
    checks += check_training(model, small, graph, plan)
    for check in checks:
        if not check.ok:
            raise VerifyError(f"{check} for {type(model).__name__}; please report this model")
    return checks
