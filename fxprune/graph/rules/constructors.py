"""Ops that make tensors: uniform fills may shrink, everything with positions in its values may not."""

from __future__ import annotations

from typing import Any

from fxprune.graph.rules.op import Labels, Op, aten, coupling, frozen_like, is_tensor, shape_of


@aten("zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor")
def fill(op: Op) -> Labels:
    """The same at every position: any axis may shrink with what it meets."""
    return tuple(op.space.fresh(s) for s in op.out_shape)


@aten(
    "arange linspace logspace eye tril_indices triu_indices meshgrid one_hot tensor histc bincount nonzero range "
    "hann_window randperm randint"
)
def positions(op: Op) -> Any:
    """Values that say where they stand, or that come from positions."""
    return op.freeze_all("gives positions", cause="positions")


@coupling(
    "aten::_assert_tensor_metadata",
    "aten::_assert_scalar",
    "aten::_assert_async",
    "aten::sym_size",
    "aten::sym_constrain_range_for_size",
    "aten::sym_constrain_range",
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_floating_point",
    "aten::numel",
)
def nothing(op: Op) -> Any:
    """Checks, and ops that make no tensor."""
    return frozen_like(op.out)


@aten("tril triu")
def triangle(op: Op) -> Labels:
    """The last two axes stay, the others pass."""
    labels = op.labels("self")
    for axis in labels[-2:]:
        op.freeze(axis, "keeps a triangle", cause="positions")
    return (*labels[:-2], None, None)


@aten("rand randn rand_like randn_like normal uniform exponential bernoulli multinomial")
def draws(op: Op) -> Any:
    """Which number lands where depends on the shape: with a channel less, every draw would be another one.

    In train mode that is as good a draw as any, and the proof settles all draws: there an axis may shrink.
    """
    if not op.facts.settled:
        return op.freeze_all("draws random numbers", cause="random numbers")
    drawn = next((n for n in op.node.all_input_nodes if is_tensor(n) and shape_of(n) == op.out_shape), None)
    return tuple(op.space.fresh(s) for s in op.out_shape) if drawn is None else op.env[drawn]
