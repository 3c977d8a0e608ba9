"""From a traced module to its channel graph: coupling rules run over the nodes, then equal labels become channels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.equations import AxisOf, Equation, call_equations, couple, locate
from fxprune.graph.labels import Bools, Freeze, LabelSpace, resolve
from fxprune.graph.modes import Watch, differs, larger
from fxprune.graph.modules import Inputs, lineage, tensor_names
from fxprune.graph.outputs import Outputs
from fxprune.graph.provenance import Attr, Expr, Size, leaves
from fxprune.graph.rules.op import Facts, Labels, Op, Rule, frozen_like, op_name, rule_for, shape_of
from fxprune.graph.scales import read_nodes
from fxprune.graph.temperature import temperature_rows
from fxprune.graph.trace import Traced, capture, capture_training, mode_of, work_of

LIGHT = 2e9  # multiplications up to which a forward costs less than a run on tensors without values


def _label_tensors(
    traced: Traced,
    space: LabelSpace,
    named: Mapping[str, torch.Tensor],
    tensors: dict[str, Labels],
    free: dict[int, Labels | None],
) -> dict[fx.Node, Any]:
    """Labels of the placeholders; those of tensors that `tensors` does not hold yet are added to it.

    Inputs are frozen, but for those whose places in the flattened inputs are in `free`, which then holds their labels.
    """
    env: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op != "placeholder":
            continue
        name = traced.tensors.get(node.name)
        if name is None:
            place = traced.inputs.index(node.name) if node.name in traced.inputs else -1
            if place in free:
                free[place] = free[place] or tuple(space.fresh(s) for s in shape_of(node))
            env[node] = free.get(place) or frozen_like(node.meta.get("val"))
            continue
        if name not in tensors:
            tensors[name] = tuple(space.fresh(s) for s in named[name].shape)
        env[node] = tensors[name]
    return env


def _run_rules(traced: Traced, env: dict[fx.Node, Any], space: LabelSpace, facts: Facts) -> None:
    read = read_nodes(traced)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            continue
        op = Op(node, env, space, facts, node in read)
        rule = rule_for(node.target)
        if rule is None:
            tensors = any(isinstance(n.meta.get("val"), (torch.Tensor, tuple, list)) for n in node.all_input_nodes)
            name = op_name(node.target)
            env[node] = op.freeze_all(f"{name} has no coupling rule", "op without a rule") if tensors else None
            continue
        env[node] = _ruled(op, rule)


def _ruled(op: Op, rule: Rule) -> Any:
    """What a rule says; all is frozen where it was not written for such arguments."""
    with contextlib.suppress(LookupError, TypeError, ValueError, AssertionError):
        labels, value = rule(op), op.node.meta.get("val")
        if not isinstance(value, torch.Tensor) or labels is None or len(labels) == value.dim():
            return labels
    why = f"{op_name(op.node.target)} is called as its coupling rule does not know it"
    return op.freeze_all(why, "op without a rule")


def analyse(
    model: nn.Module,
    inputs: Inputs,
    prefer: tuple[str, ...] = ("heads", "head_dim"),
    returned: Outputs | None = None,
    free: Iterable[int] = (),
) -> ChannelGraph:
    """Capture a model, in train mode too where it differs, and find its channels (see `fxprune.trace`).

    Args:
        free: places in the flattened inputs of tensors that are not held: another model makes them, and is cut as well.
    """
    watch = Watch()
    with watch():
        traced = capture(model, inputs, returned)
    trained, unseen = _in_training(model, inputs, traced, watch)
    modes = [t for t in (traced, trained) if t is not None]
    named = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    space, facts = LabelSpace(), Facts()
    env: dict[fx.Node, Any] = {}
    tensors: dict[str, Labels] = {}
    inputs_labels: dict[int, Labels | None] = dict.fromkeys(free)
    for mode in modes:
        env |= _label_tensors(mode, space, named, tensors, inputs_labels)
        facts.settled = mode.in_training
        _run_rules(mode, env, space, facts)
        _hold_outputs(mode, env, space)
    _hold_tables(model, modes, tensors, space)
    parameters = frozenset(n for n, _ in model.named_parameters() if n in tensors)
    for attended in facts.attended:
        mode = mode_of(attended.node, traced, trained)
        if not temperature_rows(mode, parameters, facts.attended, attended.node):
            why = "sets the softmax temperature, and no layer makes the query alone"
            space.freeze(attended.axis, Freeze("attention scale", attended.node, why))
    bare = space.copy()
    axis_of = _locate(modes, env, tensors, tensor_names(model))
    calls = [call for mode in modes for call in call_equations(mode, env)]
    equalities = [pair for mode in modes for pair in mode.recorder.equalities]
    couple(space, _read_labels(space, facts, env), calls, equalities, axis_of)
    plain = [n for mode in modes for n in mode.recorder.numbers]
    lost = [n for mode in modes for n in mode.recorder.lost]
    numbers = list(_numbers(space, calls, plain, lost, axis_of))
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
        parameters=parameters,
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


def _hold_tables(model: nn.Module, modes: list[Traced], tensors: Mapping[str, Labels], space: LabelSpace) -> None:
    """Hold buffers beside which their module keeps one of the same width that no trace has read.

    Such a module makes the one from the other when it must (rotary tables for longer inputs, averages of a codebook
    while training), and only one of them would be cut.
    """
    names = tensor_names(model)
    used = {t.tensors[n.name] for t in modes for n in read_nodes(t) if n.name in t.tensors}
    for path, module in model.named_modules():
        own = {n: t for n, t in module._buffers.items() if t is not None and t.dim() and t.is_floating_point()}
        full = {n: names[f"{path}.{n}".removeprefix(".")] for n in own}
        read = {n: tensors[name] for n, name in full.items() if name in used}
        unread = [n for n in own if n not in read]
        widths = {w: n for n in unread for size in own[n].shape for w in (size, 2 * size)}
        for n, labels in read.items():
            for axis in labels:
                if axis is not None and len(axis) in widths:
                    why = f"{n} may be made anew from {widths[len(axis)]}, which no trace has read"
                    space.freeze(axis, Freeze("a table that fills itself", "", why))


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
    space: LabelSpace, calls: list[list[Equation]], plain: list[Expr], lost: list[Expr], axis_of: AxisOf
) -> Iterator[Equation]:
    """What the model's Python computes with as a number, or lost sight of: 1/sqrt(head_dim) changes with head_dim.

    Where such a scale cannot be undone in the weights the proof fails, and these are held.  Of the factors of a split
    one that is no number is rather let live.
    """
    numbers = set(plain)
    for expr in dict.fromkeys([*plain, *lost]):
        for leaf in leaves(expr):
            axes = [axis_of(leaf)] if isinstance(leaf, Size) else [q.axis for c in calls for q in c if q.expr == leaf]
            for axis in axes:
                if axis is None:
                    continue
                if expr in numbers:
                    space.hint(axis, "number")
                yield Equation(len(axis), axis, len(axis), "")


def _equality_equations(a: Any, b: Any, axis_of: AxisOf) -> Iterator[Equation]:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Attr) and isinstance(y, Size):
            yield Equation(x, axis_of(y), x.old, "a comparison")
