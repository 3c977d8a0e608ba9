"""Both models against the clock."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import Inputs, evaluating, same_draws
from fxprune.graph.packing import called, copied
from fxprune.graph.trace import place_of
from fxprune.graph.untouched import same_buffers
from fxprune.planning.costs.stopwatch import take_turns
from fxprune.planning.plan import Plan
from fxprune.reporting.speed import Timing
from fxprune.scoring.mapped import scratch

ROUNDS, GLANCE = 10, 3  # where a latency was asked for, and where not
HEAVY = {"cpu": 2e10}  # multiply-accumulates of a forward, beyond which a glance costs too much: a second of one core
HEAVIER = 2e13  # the same on any other device


def seconds_of(models: Sequence[nn.Module], graph: ChannelGraph, rounds: int) -> list[float]:
    """The fastest forward of each on the example inputs, in eval mode, taking turns; the models stay as they are."""
    inputs, device = graph.traced.example, place_of(graph.traced)[0]
    with ExitStack() as scopes:
        for model in models:
            scopes.enter_context(evaluating(model))
            scopes.enter_context(same_buffers(model))
        scopes.enter_context(same_draws())
        turns = take_turns([partial(_forward, m, inputs) for m in models], device, rounds)
    return [min(seconds) for seconds in turns]


def _forward(model: nn.Module, inputs: Inputs) -> object:
    return called(model, copied(inputs))  # copies, since a forward may change what it is given


def timed(net: nn.Module, small: nn.Module, graph: ChannelGraph, plan: Plan) -> Timing | None:
    """Both in turns: at length for a latency, at a glance for any other budget; None where even that takes long."""
    if plan.of != "latency":
        return glanced(net, small, graph, plan.costs.get("macs", (0.0, 0.0))[0])
    made = _in_turns(net, small, graph, ROUNDS)
    return made and replace(made, predicted=plan.achieved, asked=plan.ratio)


def glanced(net: nn.Module, small: nn.Module, graph: ChannelGraph, macs: float) -> Timing | None:
    """Both in turns, a few times; None where even that takes long.

    Args:
        macs: of a forward of `net`. They decide, not the clock: every process decides alike.
    """
    device = place_of(graph.traced)[0]
    return _in_turns(net, small, graph, GLANCE) if macs <= HEAVY.get(device.type, HEAVIER) else None


def _in_turns(net: nn.Module, small: nn.Module, graph: ChannelGraph, rounds: int) -> Timing | None:
    if any(p.is_meta for p in net.parameters()) or scratch() is not None:  # nothing there, or a disk's time
        return None
    before, after = seconds_of([net, small], graph, rounds)
    if not (before > 0 and after > 0):  # a clock too coarse for so small a model
        return None
    return Timing(before, after, device=_words(place_of(graph.traced)[0]))


def _words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"
