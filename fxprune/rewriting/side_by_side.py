"""Layers corrected in the middle of one pass: both models, all batches, each halted where a layer runs.

When the last of them has come to a layer, its moments are known; it is fitted, the small model's outputs of it are
computed anew, and all go on with these.  What is the end of a branch is fitted where it is added to the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxprune.graph.modules import cuda_devices
from fxprune.rewriting.lockstep import Halt, in_step
from fxprune.rewriting.regression import Found, Sums, _laid, _rows, add, add_lack, values
from fxprune.rewriting.slicing import kept_positions
from fxprune.scoring.context import Context
from fxprune.scoring.observation import Call

Fit = Callable[[str, Sums], dict[str, Tensor]]


@dataclass(frozen=True)
class Met:
    """A layer's call where a run halts; at an addition with what it is added to."""

    call: Call
    other: Tensor | None = None


@dataclass
class Corrector:
    """What is done where the runs halt: those of the model have even numbers, of the small one odd ones."""

    ctx: Context
    found: dict[str, Found]
    keep: npt.NDArray[np.bool_]
    fit: Fit
    weights: dict[str, Tensor]  # of the small model
    open: dict[str, Sums]

    def __call__(self, key: Any, here: dict[int, Met]) -> None:
        name, adding = key
        pairs = [(met, here[k + 1]) for k, met in here.items() if not k % 2 and k + 1 in here]
        found = self.found[name]
        if not adding:
            self._read(name, found, [(a.call, b.call) for a, b in pairs])
            if found.joins:
                return
        elif name in self.open:
            outputs = kept_positions(self.ctx.graph, name, self.keep)[0]
            for a, b in pairs:
                assert a.other is not None and b.other is not None and found.reader is not None
                s = _rows(_laid(a.other), 1)
                s = s if outputs is None else s[:, outputs.to(s.device)]
                add_lack(self.open[name], values(found.reader, b.call), s, _rows(_laid(b.other), 1))
        if (sums := self.open.pop(name, None)) is not None and isinstance(sums.own, Tensor) and self.fit(name, sums):
            for _, met in pairs:
                assert met.call.again is not None
                met.call.again(self.weights[name])

    def _read(self, name: str, found: Found, calls: list[tuple[Call, Call]]) -> None:
        assert found.reader is not None
        sums = self.open[name] = Sums()
        for a, b in calls:
            add(sums, values(found.reader, a), values(found.reader, b))


def side_by_side(
    ctx: Context, small: nn.Module, found: dict[str, Found], keep: npt.NDArray[np.bool_], fit: Fit
) -> None:
    """`fit(weight, sums)` writes new values into the small model, for one layer after the other."""
    runs: list[Callable[[Halt], None]] = []
    for number, batch in enumerate(ctx.batches):
        for model in (ctx.model, small):
            own = replace(ctx, data=[batch], seed=ctx.seed + number, memo={}, progress=False, model=model)
            runs.append(partial(_run, own, found))
    held = {**dict(small.named_buffers()), **dict(small.named_parameters())}
    corrector = Corrector(ctx, found, keep, fit, held, {})
    in_step(runs, corrector, cuda_devices(small))


def _run(ctx: Context, found: dict[str, Found], halt: Halt) -> None:
    def visit(call: Call) -> None:
        if call.weight in found and call.inputs is not None:
            halt((call.weight, False), Met(call))

    def added(call: Call, other: Tensor) -> None:
        if call.weight in found and found[call.weight].joins:
            halt((call.weight, True), Met(call, other))

    ctx.watch(ctx.batches[0], visit, added)  # type: ignore[index]
