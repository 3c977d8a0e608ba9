"""`carry_over`: what was trained for the dense model goes along to the pruned one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.adapter import find_adapter
from fxprune.arguments import MAPPING, Kind, number, takes
from fxprune.errors import InputsError, PlanError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import ExampleInputs, as_inputs
from fxprune.graph.outputs import Wanted
from fxprune.graph.packing import unpacked
from fxprune.graph.turns import in_turn
from fxprune.planning.plan import Plan
from fxprune.planning.translation import translated
from fxprune.pruning.finish import finished
from fxprune.pruning.prune import trace
from fxprune.pruning.stock import constructor_of, replayed
from fxprune.training.lora import Cutter
from fxprune.training.side_models import Reader, fitted

TRAINED = Kind("a state dict or an nn.Module", lambda v: isinstance(v, (Mapping, nn.Module)))
SCALING = number("a number").or_none
WRAPPERS = ("", "base_model.model.")  # peft's around a model


@takes(trained=TRAINED, feeds=MAPPING.or_none, scaling=SCALING)
@torch.inference_mode(False)
def carry_over(
    plan: Plan,
    trained: Any,
    model: Any,
    *,
    example_inputs: ExampleInputs | None = None,
    inputs: ExampleInputs | None = None,
    feeds: Mapping[str, str] | None = None,
    outputs: Wanted | None = None,
    scaling: float | None = None,
) -> Any:
    """What was trained for the unpruned model, cut by the plan for the pruned one, which the stock loaders then take.

    - A state dict of LoRA or DoRA factors, in the names of peft, diffusers or kohya, whole weights among them, or
      embeddings of new words (textual inversion): a dict of the same names; where a stock shape has fewer layers, those
      that moved up have their new numbers.
    - The model itself with more in it (layers of peft, projections of an IP-Adapter): the same, pruned and proven.
    - A model whose outputs the pruned one reads (a ControlNet, a T2I-Adapter): a copy that gives what fits.

    Args:
        plan: what was removed: `fxprune.report(small).plan`.
        trained: one of these; it is left as it is.
        model: the unpruned model, or a pipeline around it.
        example_inputs: of `model`, as they were for the plan; None: its adapter makes them.
        inputs: of `trained`, where it is a module that takes others than `model`.
        feeds: input of `model` -> the output of `trained` that it takes ("": all that it returns); None: as the adapter
            of the family says.
        outputs: as for the plan; see `trace`.
        scaling: what the factors of a DoRA are multiplied by (`lora_alpha / r`), where its state dict holds no alpha.

    Raises:
        PlanError: the plan is not of this model, or what was added couples channels that it tells apart.
        InputsError: something was not trained for this model, or its names say nothing.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Linear(32, 2))
    >>> x = torch.ones(1, 8)
    >>> plan = fxprune.report(fxprune.prune(net, "magnitude", 0.5, example_inputs=x, progress=False)).plan
    >>> lora = {"0.lora_A.weight": torch.ones(4, 8), "0.lora_B.weight": torch.ones(32, 4)}
    >>> {k: tuple(v.shape) for k, v in fxprune.carry_over(plan, lora, net, example_inputs=x).items()}
    {'0.lora_A.weight': (4, 8), '0.lora_B.weight': (16, 4)}
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan is a {type(plan).__name__}; pass fxprune.report(small).plan")
    with in_turn:
        adapter = find_adapter(model)
        net = adapter.unwrap(model)[0]
        graph = trace(net, example_inputs, attention=plan.traced[0], outputs=outputs).revised(plan.traced[1:])
        plan.check(graph)
        if isinstance(trained, Mapping):
            moved: Mapping[str, str] = {}
            if plan.config:
                made = replayed(net, constructor_of(net, adapter, "stock"), graph, plan)
                small, moved = made.model, made.moved
            else:
                small = finished(net, graph, plan, verify=True, strict=False)
            left, keep = graph.without(plan.blocks), plan.kept(graph)
            return Cutter(net, small, left, graph, keep, moved, scaling).cut(trained)
        if (names := _names_in(trained, net)) is not None:
            return _extended(plan, graph, trained, names, example_inputs if inputs is None else inputs, outputs)
        given = as_inputs(adapter.example_inputs(net) if example_inputs is None else example_inputs)
        feeds = adapter.feeds(net, trained) if feeds is None else feeds
        _require_feeds(feeds, net, trained)
        side = as_inputs(adapter.side_inputs(trained, given[1]) if inputs is None else inputs)
        return fitted(trained, side, feeds, Reader(net, graph, plan, given))


def _names_in(trained: nn.Module, model: nn.Module) -> dict[str, str] | None:
    """The names that the tensors of a model have in one that holds it; None where it does not."""
    there = _shapes(trained)
    for wrapper in WRAPPERS:
        found: dict[str, str] = {}
        for name, shape in _shapes(model).items():
            owner, _, leaf = name.rpartition(".")
            at = (f"{wrapper}{name}", f"{wrapper}{owner}.base_layer.{leaf}")
            place = next((n for n in at if there.get(n) == shape), None)
            if place is None:
                break
            found[name] = place
        else:
            return found
    return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    named: Iterable[tuple[str, Tensor]] = (*model.named_parameters(), *model.named_buffers())
    return {name: tuple(t.shape) for name, t in named}


def _extended(
    plan: Plan,
    graph: ChannelGraph,
    trained: nn.Module,
    names: Mapping[str, str],
    inputs: ExampleInputs | None,
    outputs: Wanted | None,
) -> nn.Module:
    if inputs is None:
        inputs = unpacked(graph.traced.example)
    other = trace(trained, inputs, attention=plan.traced[0], outputs=outputs)
    there = translated(plan, graph, other, lambda name: names.get(name, name))
    return finished(trained, other, there, verify=True, strict=False)


def _require_feeds(feeds: Mapping[str, str], net: nn.Module, trained: nn.Module) -> None:
    takes_ = inspect.signature(net.forward).parameters
    if not feeds or (unknown := [name for name in feeds if name not in takes_]):
        what = f"takes no input {unknown[0]!r}" if feeds else f"is not known to read a {type(trained).__name__}"
        raise InputsError(
            f"this {type(net).__name__} {what}: pass feeds={{input of the {type(net).__name__}: output of the "
            f"{type(trained).__name__}}}"
        )
