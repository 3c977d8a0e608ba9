"""Proofs that a pruned model is right.

masked = dense            the original model with the removed channels masked computes what the dense model computes
permutation certificate   permuting a group's channels, in every slice, leaves the network's function unchanged
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import deep_copy
from fxprune.graph.turns import in_turn
from fxprune.masking.comparison import outputs, overflow, relative_error, tolerance
from fxprune.masking.masked_run import run_masked
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
    reference = run_masked(graph, model, graph.traced.example, plan.kept(graph), plan.norms, plan.blocks)
    if overflow(reference):
        raise VerifyError(
            f"the {type(model).__name__} gives NaN or infinite numbers on the example inputs, so that nothing can be "
            "proved: pass example_inputs= that it can compute with, or look for NaN in its weights"
        )
    try:
        got = outputs(small, graph.traced.example)
    except Exception as e:
        raise VerifyError(f"the pruned {type(small).__name__} does not run: {type(e).__name__}: {e}") from e
    if len(got) != len(reference):
        return Check("masked = dense", float("inf"), tolerance(model))
    return Check("masked = dense", relative_error(got, reference), tolerance(model))


def same_batches(model: nn.Module, small: nn.Module, graph: ChannelGraph) -> bool:
    """Whether the dense model takes a larger batch, with outputs of the same shapes, wherever the original does."""
    tensors = [x for x in pytree.tree_leaves(graph.traced.example) if isinstance(x, torch.Tensor) and x.dim()]
    batch = tensors[0].shape[0] if tensors else 0

    def larger(x: Any) -> Any:
        return torch.cat([x, x[:1]]) if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == batch else x

    def shapes(net: nn.Module) -> list[Any] | None:
        try:
            return [getattr(x, "shape", None) for x in outputs(net, pytree.tree_map(larger, graph.traced.example))]
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
    reference = outputs(model, graph.traced.example)
    permuted = permute_(deep_copy(model), graph, permutation(graph, seed))
    return Check("permutation", relative_error(outputs(permuted, graph.traced.example), reference), tolerance(model))


def verify(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, *, seed: int = 0
) -> tuple[Check, Check]:
    """Both proofs: the permutation certificate of the graph, and masked = dense for the plan.

    Raises:
        VerifyError: where one of them fails.
    """
    with in_turn:
        checks = (check_permutation(model, graph, seed), check_dense(model, small, graph, plan))
    for check in checks:
        if not check.ok:
            raise VerifyError(f"{check} for {type(model).__name__}; please report this model")
    return checks
