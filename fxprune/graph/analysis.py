"""From a traced module to its channel graph: coupling rules run over the nodes, then equal labels become channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.equations import AxisOf, Equation, call_equations, couple, is_factor, locate, render
from fxprune.graph.labels import Bools, Freeze, LabelSpace, resolve
from fxprune.graph.modes import Watch, differs, larger
from fxprune.graph.modules import Inputs, lineage, tensor_names
from fxprune.graph.outputs import Outputs
from fxprune.graph.provenance import Attr, Expr, Size, leaves
from fxprune.graph.rules.op import Facts, Labels, Op, frozen_like, op_name, rule_for
from fxprune.graph.temperature import query_rows
from fxprune.graph.trace import Traced, capture, capture_training, mode_of, work_of

LIGHT = 2e9  # multiplications up to which a forward costs less than a run on tensors without values


def _label_tensors(
    traced: Traced, space: LabelSpace, named: Mapping[str, torch.Tensor], tensors: dict[str, Labels]
) -> dict[fx.Node, Any]:
    """Labels of the placeholders; those of tensors that `tensors` does not hold yet are added to it."""
    env: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op != "placeholder":
            continue
        name = traced.tensors.get(node.name)
        if name is None:
            env[node] = frozen_like(node.meta.get("val"))
            continue
        if name not in tensors:
            tensors[name] = tuple(space.fresh(s) for s in named[name].shape)
        env[node] = tensors[name]
    return env


def _run_rules(traced: Traced, env: dict[fx.Node, Any], space: LabelSpace, facts: Facts) -> None:
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            continue
        op = Op(node, env, space, facts)
        rule = rule_for(node.target)
        if rule is None:
            tensors = any(isinstance(n.meta.get("val"), (torch.Tensor, tuple, list)) for n in node.all_input_nodes)
            name = op_name(node.target)
            env[node] = op.freeze_all(f"{name} has no coupling rule", "op without a rule") if tensors else None
            continue
        env[node] = rule(op)


def analyse(
    model: nn.Module,
    inputs: Inputs,
    prefer: tuple[str, ...] = ("heads", "head_dim"),
    returned: Outputs | None = None,
) -> ChannelGraph:
    """Capture a model, in train mode too where it differs, and find its channels (see `fxprune.trace`)."""
    watch = Watch()
    with watch():
        traced = capture(model, inputs, returned)
    trained, unseen = _in_training(model, inputs, traced, watch)
    modes = [t for t in (traced, trained) if t is not None]
    named = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    space, facts = LabelSpace(), Facts()
    env: dict[fx.Node, Any] = {}
    tensors: dict[str, Labels] = {}
    for mode in modes:
        env |= _label_tensors(mode, space, named, tensors)
        facts.settled = mode.in_training
        _run_rules(mode, env, space, facts)
        _hold_outputs(mode, env, space)
    for attended in facts.attended:
        if query_rows(mode_of(attended.node, traced, trained), attended.node) is None:
            why = "sets the softmax temperature, and no linear layer makes the query alone"
            space.freeze(attended.axis, Freeze("attention scale", attended.node, why))
    bare = space.copy()
    axis_of = _locate(modes, env, tensors, tensor_names(model))
    calls = [call for mode in modes for call in call_equations(mode, env)]
    equalities = [pair for mode in modes for pair in mode.recorder.equalities]
    couple(space, _read_labels(space, facts, env), calls, equalities, axis_of)
    numbers = list(_numbers(space, calls, [n for mode in modes for n in mode.recorder.numbers], axis_of))
    owned = [a for labels in tensors.values() for a in labels if a is not None]
    has_tensor = np.concatenate(owned) if owned else np.zeros(0, np.int64)
    stated = len(space.freezes)
    resolved = resolve(space, has_tensor, prefer)
    equations = [eq for call in calls for eq in call if not isinstance(eq.expr, int)]
    literals = [*numbers, *(eq for call in calls for eq in call if isinstance(eq.expr, int))]
    for a, b in equalities:
        equations += _equality_equations(a, b, axis_of)
    return ChannelGraph(
        traced=traced,
        model_class=type(model).__name__,
        env=env,
        tensors=tensors,
        shapes={n: tuple(named[n].shape) for n in tensors},
        parameters=frozenset(n for n, _ in model.named_parameters() if n in tensors),
        space=space,
        facts=facts,
        resolved=resolved,
        equations=tuple(equations),
        literals=tuple(literals),
        axis_of=axis_of,
        bare=bare,
        prefer=prefer,
        owned=has_tensor,
        stated=stated,
        outside=sum(p.numel() for n, p in model.named_parameters() if n not in tensors),
        within=lineage(model),
        training=trained,
        unseen=unseen,
        unread=_unread(model, modes),
    )


def _in_training(model: nn.Module, inputs: Inputs, traced: Traced, watch: Watch) -> tuple[Traced | None, str]:
    """The model in train mode, where it computes something else there; or why that could not be seen."""
    trouble = ""
    for given in (inputs, larger(inputs)):
        try:
            if not differs(model, given, watch, work_of(traced) < LIGHT):
                return None, ""
            return capture_training(model, given, traced), ""
        except Exception as e:  # noqa: BLE001 - train mode may need what the inputs do not hold: told in the report
            trouble = trouble or f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0]}"
    return None, trouble


def _hold_outputs(traced: Traced, env: Mapping[fx.Node, Any], space: LabelSpace) -> None:
    for out in traced.outputs:
        if isinstance(out, fx.Node):
            for axis in env.get(out) or ():
                space.freeze(axis, Freeze("reaches the output", out.name, "reaches the model's output"))


def _unread(model: nn.Module, modes: list[Traced]) -> tuple[str, ...]:
    """Parameters that no trace has read; most exports hold them, without a user."""
    live = [(n, t) for t in modes for n in t.graph.nodes if n.op == "placeholder" and (n.users or n in t.outputs)]
    read = {t.tensors[n.name] for n, t in live if n.name in t.tensors}
    return tuple(n for n, _ in model.named_parameters() if n not in read)


def _locate(
    modes: list[Traced], env: dict[fx.Node, Any], tensors: dict[str, Labels], canonical: dict[str, str]
) -> AxisOf:
    """`locate` over all modes: calls have numbers of their own in each."""
    found = [locate(mode, env, tensors, canonical) for mode in modes]
    return lambda size: next((axis for f in found if (axis := f(size)) is not None), None)


def _read_labels(space: LabelSpace, facts: Facts, env: Mapping[fx.Node, Any]) -> Bools:
    """Which labels stand on an axis that some op contracts over."""
    out = np.zeros(space.size, bool)
    for pairs in facts.reads.values():
        for node, axis in pairs:
            out[env[node][axis]] = True
    return out


def _numbers(
    space: LabelSpace, calls: list[list[Equation]], numbers: list[Expr], axis_of: AxisOf
) -> Iterator[Equation]:
    """Hold what the model's Python computes with as a number: with less head_dim 1/sqrt(head_dim) is another one.

    A factor of a split is held at once, since another factor may live instead.  Other axes that a number comes from (it
    need not reach a value) are given back as literals, to be held if the proof fails.
    """
    for expr in dict.fromkeys(numbers):
        for leaf in leaves(expr):
            axes = [axis_of(leaf)] if isinstance(leaf, Size) else [q.axis for c in calls for q in c if q.expr == leaf]
            for axis in axes:
                if axis is None:
                    continue
                if leaf == expr and is_factor(space, axis):
                    space.freeze(axis, Freeze("used as a number", "", f"{render(expr)} is used as a number"))
                else:
                    yield Equation(len(axis), axis, len(axis), "")


def _equality_equations(a: Any, b: Any, axis_of: AxisOf) -> Iterator[Equation]:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Attr) and isinstance(y, Size):
            yield Equation(x, axis_of(y), x.old, "a comparison")
