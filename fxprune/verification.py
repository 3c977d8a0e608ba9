"""Proofs that a pruned model is right.

masked = dense            the original model with the removed channels masked computes what the dense model computes;
                          where a linear map stands for blocks, it stands for them in the masked model, too
permutation certificate   permuting a group's channels, in every slice, leaves the network's function unchanged

Two right computations differ by rounding, and by how much hangs on the model.  A difference of more than a few last
bits is looked at again in float64, where rounding goes and a wrong result stays; where a model does not run so, its
noise is measured (every weight off by its last bit).  Parameters that are all zero hide what they multiply, so both
models are compared again with numbers in their place.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.arguments import MODULE, takes
from fxprune.errors import InputsError, VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.copies import deep_copy
from fxprune.graph.modes import larger
from fxprune.graph.modules import Inputs
from fxprune.graph.offloading import at_rest
from fxprune.graph.outputs import Outputs
from fxprune.graph.packing import copied
from fxprune.graph.trace import Traced
from fxprune.graph.turns import in_turn
from fxprune.graph.untouched import same_buffers, same_parameters
from fxprune.masking.comparison import as_float64, counted, overflow, relative_error, silent, tolerance
from fxprune.masking.masked_run import Numbers, run_masked
from fxprune.masking.settled import Settled
from fxprune.masking.trials import in_float64, rounded_anew, zero_parameters, zeros_filled
from fxprune.planning.plan import Plan, followed
from fxprune.rewriting.fitted import lines_of
from fxprune.rewriting.rewrite import belongs
from fxprune.rewriting.scales import scales_of

EXACT = 1e-8  # how far two right computations may differ in float64
NOISE, BEYOND = 16.0, 64.0  # multiples of the measured noise that are accepted; the same where float64 does not help
_LAST_BITS = 16


class NothingComparedError(VerifyError):
    """The given model has no outputs to compare with: no plan is at fault, and none would do better."""


@dataclass(frozen=True)
class Check:
    """One comparison: its name, the largest relative error, the tolerance, and what else is to be told."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        told = f"; {self.note}" if self.note else ""
        return (
            f"{self.name}: relative error {self.error:.1e} ({'ok' if self.ok else f'over {self.tolerance:.0e}'}){told}"
        )


@dataclass(frozen=True)
class _Comparison:
    """Two ways to the same outputs, of the model as it is at the moment."""

    name: str
    model: nn.Module
    traced: Traced
    reference: Callable[[Inputs], list[Any]]
    candidate: Callable[[Inputs], list[Any]]
    others: tuple[nn.Module, ...] = ()

    def check(self, zeros: Callable[[], AbstractContextManager[None]] | None) -> Check:
        """Compare; again with other numbers where some are all zero (`zeros`).

        Raises:
            VerifyError: the candidate does not run.
        """
        found = [self._once()]
        if zeros is not None:
            with zeros():
                found.append(self._once())
        worst = max((check for check, _ in found), key=lambda c: (not c.ok, c.error / c.tolerance))
        tensors, still = found[-1][1]
        notes = [worst.note] if worst.note else []
        if not tensors:
            notes.append("nothing was compared: no output holds floating-point numbers")
        elif still:
            what = "nothing was compared: every output is" if still == tensors else f"{still} of {tensors} outputs are"
            notes.append(f"{what} zero on these inputs")
        elif found[0][1][1]:
            notes.append("outputs that zero weights make zero were compared with random ones in their place")
        return replace(worst, note="; ".join(notes))

    def _once(self) -> tuple[Check, tuple[int, int]]:
        reference, got = self.reference(self.traced.example), self.candidate(self.traced.example)
        if overflow(reference):
            raise NothingComparedError(
                f"the {type(self.model).__name__} gives NaN or infinite numbers on the example inputs, so that nothing "
                "can be proved: pass example_inputs= that it can compute with, or look for NaN in its weights"
            )
        limit = tolerance(self.model, self.traced)
        if len(got) != len(reference):
            return Check(self.name, float("inf"), limit), silent(reference)
        error = relative_error(got, reference)
        bits = _LAST_BITS * max(
            (torch.finfo(p.dtype).eps for p in self.model.parameters() if p.is_floating_point()), default=0
        )
        check = Check(self.name, error, limit)
        if error > min(limit, bits) and np.isfinite(error):
            check = self._measured(check, reference)
        return check, silent(reference)

    def _measured(self, check: Check, reference: list[Any]) -> Check:
        """The check by the model's own rounding: in float64, or beside what the last bits of its weights do."""
        exact = self._in_float64()
        if exact is not None and exact <= EXACT:
            return Check(check.name, exact, EXACT, f"in float64; {check.error:.1e} as it is, by rounding")
        with rounded_anew(self.model):
            noise = relative_error(self.reference(self.traced.example), reference)
        if exact is not None and exact > check.error / 4:  # it stays: no rounding, but for what the model rounds itself
            limit = min(check.tolerance, max(BEYOND * noise, check.tolerance / 10))
            return replace(check, tolerance=limit, note="the same in float64" if check.error > limit else "")
        limit = max(check.tolerance, min(NOISE * noise, 30 * check.tolerance))
        return replace(check, tolerance=limit, note=f"rounding noise of the model: {noise:.1e}")

    def _in_float64(self) -> float | None:
        """The error in float64; None where the models do not run so."""
        inputs = as_float64(self.traced.example)
        try:
            with in_float64(self.model, *self.others):
                reference, got = self.reference(inputs), self.candidate(inputs)
        except Exception:  # noqa: BLE001 - a model may insist on its type; then its noise is measured
            return None
        doubles = [x.dtype == torch.float64 for x in reference if isinstance(x, torch.Tensor) and x.is_floating_point()]
        return relative_error(got, reference) if all(doubles) else None


def check_dense(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, numbers: Sequence[Numbers] | None = None
) -> Check:
    """Compare the dense model with the masked original on the example inputs.

    Args:
        numbers: for each mode, those that follow the plan (see `ChannelGraph.following`); None: they are found.

    Raises:
        VerifyError: where the dense model does not run.
    """
    if meta := next((n for n, p in model.named_parameters() if p.is_meta), ""):
        raise NothingComparedError(
            f"nothing can be compared: {meta} of this {type(model).__name__} is on the meta device and has no values; "
            "load the weights first, or pass verify=False"
        )
    return _masked_is_dense(model, small, graph, graph, plan, "", None if numbers is None else numbers[0])


def check_training(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, numbers: Sequence[Numbers] | None = None
) -> tuple[Check, ...]:
    """The same in train mode, where the model computes something else there: dropout drops nothing, and draws give one
    constant, in both.  Where train mode was not traced, the dense model has to run wherever the original does.

    Raises:
        VerifyError: where the dense model does not run.
    """
    if graph.unseen:
        _trains_alike(model, small, graph)
    given: Sequence[Numbers | None] = numbers or [None] * len(graph.modes)
    return tuple(
        _masked_is_dense(model, small, graph, view, plan, " in train mode", found)
        for view, found in list(zip(graph.modes, given, strict=True))[1:]
    )


def _masked_is_dense(
    model: nn.Module,
    small: nn.Module,
    graph: ChannelGraph,
    view: ChannelGraph,
    plan: Plan,
    mode: str,
    numbers: Numbers | None,
) -> Check:
    """`view` is the graph in the mode that is compared."""
    traced, keep, rest = view.traced, plan.kept(graph), graph.without(plan.blocks)
    if numbers is None and graph.follows:
        left = dict(zip(map(id, graph.modes), rest.modes, strict=True))[id(view)]
        numbers = None if (found := scales_of(rest, left, small, keep)) is None else found.followed

    def masked(inputs: Inputs) -> list[Any]:
        with Settled() if traced.in_training else contextlib.nullcontext(), same_buffers(model), same_parameters(model):
            try:
                lines = lines_of(small, view, keep, plan.blocks)
                return run_masked(view, model, copied(inputs), keep, plan.norms, plan.blocks, numbers, lines)
            except (RuntimeError, TypeError) as e:
                _require_runs(model, traced, inputs, e)
                raise

    def dense(inputs: Inputs) -> list[Any]:
        try:
            return counted(small, traced, inputs)
        except Exception as e:
            raise VerifyError(f"the pruned {type(small).__name__} does not run{mode}: {type(e).__name__}: {e}") from e

    zero = zero_parameters(model, rest, small, keep)
    fill = functools.partial(zeros_filled, zero, rest, model, small, keep) if zero else None
    return _Comparison(f"masked = dense{mode}", model, traced, masked, dense, (small,)).check(fill)


def _require_runs(model: nn.Module, traced: Traced, inputs: Inputs, failed: Exception) -> None:
    """Tell a model that does not run itself, though tensors without values pass through it, from a fault of the masks.

    Raises:
        InputsError: it does not run.
    """
    try:
        counted(model, traced, inputs)
    except Exception as e:
        raise InputsError(
            f"the {type(model).__name__} does not run on example_inputs: {type(e).__name__}: {e}; pass inputs of the "
            "sizes, dtypes and device that it computes with"
        ) from e


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
    """For every group a random order of its channels that moves none across the groups of a group norm, and none that
    has neighbours."""
    rng = np.random.default_rng(seed)
    cell = np.zeros(int(graph.component.max()) + 1, np.uint64)
    for norm in graph.facts.norm_groups:
        component = graph.component[norm.axis]
        block = np.arange(len(component)) // (len(component) // norm.groups)
        keys = rng.integers(1, 2**62, size=norm.groups).astype(np.uint64)
        np.add.at(cell, component, keys[block])
    for axis in graph.facts.ordered:
        component = graph.component[axis]
        np.add.at(cell, component, rng.integers(1, 2**62, size=len(component)).astype(np.uint64))
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
    order = permutation(graph, seed)

    def permuted(traced: Traced, inputs: Inputs) -> list[Any]:
        return counted(permute_(deep_copy(model), graph, order), traced, inputs)

    zero = zero_parameters(model, graph)
    fill = functools.partial(zeros_filled, zero, graph, model) if zero else None
    checks = []
    for traced in (view.traced for view in graph.modes):
        own, other = functools.partial(counted, model, traced), functools.partial(permuted, traced)
        checks.append(_Comparison("permutation", model, traced, own, other).check(fill))
    return max(checks, key=lambda c: (not c.ok, c.error / c.tolerance))


@takes(model=MODULE, small=MODULE, graph=ChannelGraph, plan=Plan)
def verify(model: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan, *, seed: int = 0) -> tuple[Check, ...]:
    """Both proofs: the permutation certificate of the graph, and masked = dense for the plan; the latter in train mode
    too, where the model computes something else there.

    Args:
        graph: of `model`, as `fxprune.trace` gives it; the steps that led from there to the plan's own graph are taken.

    Raises:
        PlanError: the plan was made for another graph, or the graph is of another model.
        VerifyError: where one of them fails.
    """
    belongs(model, graph)
    with in_turn, at_rest(model), at_rest(small):
        graph = followed(graph, plan)
        checks: tuple[Check, ...] = (check_permutation(model, graph, seed), check_dense(model, small, graph, plan))
        checks += check_training(model, small, graph, plan)
    for check in checks:
        if not check.ok:
            raise VerifyError(f"{check} for {type(model).__name__}; please report this model")
    return checks
