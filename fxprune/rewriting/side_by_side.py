"""Layers corrected in the middle of one pass: both models, all batches, each halted where a layer runs.

When the last of them has come to a layer, its moments are known; it is fitted, the small model's outputs of it are
computed anew, and all go on with these.  What is the end of a branch is fitted where it is added to the stream.  A
layer that runs more than once is fitted the first time; what the dense one reads later is known by then from a pass of
its own, and stands for what the small one will read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fxprune.graph.copies import deep_copy
from fxprune.graph.modules import cuda_devices
from fxprune.rewriting.lockstep import Halt, in_step
from fxprune.rewriting.regression import Found, Sums, add, add_lack, beside, narrowed, values
from fxprune.rewriting.slicing import kept_positions
from fxprune.rewriting.weighing import Roots
from fxprune.scoring.context import Context
from fxprune.scoring.observation import Call

Fit = Callable[[Found, Sums], bool]


@dataclass(frozen=True)
class Met:
    """A layer's call where a run halts; at an addition with what it is added to."""

    call: Call
    other: Tensor | None = None


Pairs: TypeAlias = "list[tuple[Met, Met, Tensor | None]]"  # of both models, and what rows count


@dataclass
class Corrector:
    """What is done where the runs halt: those of the model have even numbers, of the small one the next odd ones."""

    ctx: Context
    found: dict[str, Found]
    keep: npt.NDArray[np.bool_]
    fit: Fit
    weights: dict[str, Tensor]  # of the small model
    later: dict[str, Sums]  # of layers that run again
    roots: Sequence[Roots]  # of each batch, what its samples and places count
    open: dict[str, Sums] = field(default_factory=dict)  # of layers that have not been fitted yet

    def __call__(self, key: Any, here: dict[int, Met]) -> None:
        """Take in what was met, and fit the layer if that is all there is to know."""
        name, adding = key
        roots = {k: self.roots[k // 2].get(name) for k in here} if self.roots else {}
        pairs = [(met, here[k + 1], roots.get(k)) for k, met in here.items() if k % 2 == 0 and k + 1 in here]
        found = self.found[name]
        if adding:
            self._add(name, found, pairs)
        else:
            self._read(name, found, pairs)
        if adding or not _at_sum(found):
            self._fit(name, found, [small.call for _, small, _ in pairs])

    def close(self) -> None:
        """Fit what was never added to anything after all."""
        for name in list(self.open):
            self._fit(name, self.found[name], [])

    def _read(self, name: str, found: Found, pairs: Pairs) -> None:
        assert found.reader is not None
        sums = self.open[name] = self.later.get(name, Sums())
        for dense, small, root in pairs:
            add(sums, values(found.reader, dense.call, root), values(found.reader, small.call, root))

    def _add(self, name: str, found: Found, pairs: Pairs) -> None:
        if name not in self.open:
            return
        assert found.reader is not None
        outputs = kept_positions(self.ctx.graph, name, self.keep)[0]
        for dense, small, root in pairs:
            assert dense.other is not None
            assert small.other is not None
            if small.call.fresh is not None and small.call.fresh():
                s, t = beside(dense.other, root), beside(small.other, root)
                s = s if outputs is None else s[:, outputs.to(s.device)]
                add_lack(self.open[name], values(found.reader, small.call, root), s, t)

    def _fit(self, name: str, found: Found, calls: list[Call]) -> None:
        sums = self.open.pop(name, None)
        if sums is not None and isinstance(sums.own, Tensor) and self.fit(found, sums):
            for call in calls:
                if call.again is not None:
                    call.again(self.weights)


def side_by_side(
    ctx: Context,
    batches: Sequence[Any],
    small: nn.Module,
    found: dict[str, Found],
    keep: npt.NDArray[np.bool_],
    fit: Fit,
    roots: Sequence[Roots] = (),
) -> None:
    """Run both models over all batches at once; `fit(layer, sums)` writes new values into the small one's tensors.

    Args:
        ctx: the model; batches with what they draw are as in its passes.
        batches: all of them.
        small: the pruned model.
        found: the layers to fit.
        keep: the channels that stay.
        fit: tells whether it has changed the layer.
        roots: of each batch, √w of the samples and places that are looked at; none: all count alike.
    """
    runs: list[Callable[[Halt], None]] = []
    for number, batch in enumerate(batches):
        for model in (ctx.model, small):
            runs.append(partial(_run, _of_batch(ctx, number, batch, _with_same_weights(model)), found))
    held = {**dict(small.named_buffers()), **dict(small.named_parameters())}
    corrector = Corrector(ctx, found, keep, fit, held, _later(ctx, batches, found, keep), roots)
    in_step(runs, corrector, cuda_devices(small))
    corrector.close()


def _of_batch(ctx: Context, number: int, batch: Any, model: nn.Module) -> Context:
    return replace(ctx, data=[batch], seed=ctx.seed + number, memo={}, progress=False, model=model)


def _later(
    ctx: Context, batches: Sequence[Any], found: dict[str, Found], keep: npt.NDArray[np.bool_]
) -> dict[str, Sums]:
    """Moments of what the dense layers read that run more than once, the first time left out."""
    sums = {name: Sums() for name, f in found.items() if f.calls > 1}
    met: set[str] = set()  # in this batch

    def visit(call: Call) -> None:
        if call.weight in met:
            it = found[call.weight]
            assert it.reader is not None
            x = values(it.reader, call)
            add(sums[call.weight], x, narrowed(x, x, it, ctx, kept_positions(ctx.graph, call.weight, keep)))
        elif call.weight in sums and call.inputs is not None:
            met.add(call.weight)

    for number, batch in enumerate(batches if sums else ()):
        met.clear()
        own = _of_batch(ctx, number, batch, ctx.model)
        own.watch(next(iter(own.batches)), visit)
    return sums


def _with_same_weights(model: nn.Module) -> nn.Module:
    """Modules of its own, since a forward may leave things in them that the rest of it reads."""
    return deep_copy(model, [(t, t) for t in (*model.parameters(), *model.buffers())])


def _at_sum(found: Found) -> bool:
    """Whether a layer is fitted where its output is added to something."""
    return found.joins and found.calls == 1


def _run(ctx: Context, found: dict[str, Found], halt: Halt) -> None:
    met: set[str] = set()

    def visit(call: Call) -> None:
        if call.weight in found and call.weight not in met and call.inputs is not None:
            met.add(call.weight)
            halt((call.weight, False), Met(call))

    def added(call: Call, other: Tensor) -> None:
        if call.weight in found and _at_sum(found[call.weight]):
            halt((call.weight, True), Met(call, other))

    (batch,) = ctx.batches
    ctx.watch(batch, visit, added)
