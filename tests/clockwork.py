"""A device of arithmetic: a weighted op takes 1 µs and a nanosecond a weight, any other half a microsecond.

What plans are made of a table of latencies is then the same on every machine, however busy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.rules.op import op_name
from fxprune.planning.latency import Bench, Left
from fxprune.pruning import timing

WEIGHT = 1e-9  # seconds
WEIGHTED = ("aten::conv2d", "aten::linear")


def net() -> nn.Module:
    """A network for it, of images of 3 x 8 x 8."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, padding=1),
        nn.GroupNorm(8, 96),
        nn.Conv2d(96, 48, 1),
        nn.Flatten(),
        nn.Linear(48 * 64, 10),
    ).eval()


def install(patch: pytest.MonkeyPatch, between: float = 0.0) -> list[int]:
    """Every bench runs on that device from now on; the list grows by one at each run.

    A finished network takes `between` seconds more than its ops do.
    """
    runs: list[int] = []

    def seconds(models: Any, graph: ChannelGraph, rounds: int) -> list[float]:
        ops = float(Bench.of(graph, Left.whole(graph)).laps().sum()) - seconds_of(models[0])
        return [between + ops + seconds_of(m) for m in models]

    patch.setattr(timing, "seconds_of", seconds)

    def laps(self: Bench) -> Any:
        runs.append(1)
        return np.array([_seconds(self, node) for node in self.program.nodes])

    patch.setattr(Bench, "laps", laps)
    return runs


def _seconds(bench: Bench, node: torch.fx.Node) -> float:
    if op_name(node.target) not in WEIGHTED:
        return 0.5e-6
    weight = node.args[1]
    assert isinstance(weight, torch.fx.Node)
    return 1e-6 + WEIGHT * bench.state[bench.program.tensors[weight.name]].numel()


def seconds_of(model: nn.Module) -> float:
    """What a model's weights take there: a forward less the part that no pruning changes."""
    return sum(WEIGHT * m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
