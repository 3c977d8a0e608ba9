"""Gradient checkpointing while a criterion looks at gradients, for models that know it and have many activations.

A diffusers model computes a block's activations anew in the backward pass where it is told to.  SDXL's UNet in bfloat16
at 128² is scored in 7.8 instead of 12.9 GiB so, in 1.1 times the time; the scores are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxprune.scoring.context import Context
from fxprune.scoring.outlook import outlook
from fxprune.scoring.storage import gib

MANY = 1 << 33  # bytes of activations, by the graph's bound
SWITCH = "enable_gradient_checkpointing"
WRITTEN = ("gradient_checkpointing", "_gradient_checkpointing_func")


@contextlib.contextmanager
def recomputing(ctx: Context, call: Any) -> Iterator[None]:
    """Within, the model keeps no activations that it can compute anew, if there would be many; it is left as it was."""
    modules = list(ctx.model.modules())
    able = [m for m in modules if callable(getattr(m, SWITCH, None))]
    wanted = bool(able) and not _on(modules) and "loss" in getattr(call, "needs", ())
    kept = outlook(ctx, call).activations if wanted else 0.0
    if kept <= MANY:
        yield
        return
    before = [{k: vars(m)[k] for k in WRITTEN if k in vars(m)} for m in modules]
    try:
        for m in able:
            with contextlib.suppress(ValueError):  # it says that it cannot
                getattr(m, SWITCH)()
        if _on(modules):
            ctx.note(f"backward passes compute activations anew, which would take up to {gib(kept)}")
        yield
    finally:
        for m, held in zip(modules, before, strict=True):
            for k in WRITTEN:
                vars(m).pop(k, None)
            vars(m).update(held)


def _on(modules: list[nn.Module]) -> bool:
    return any(getattr(m, WRITTEN[0], False) for m in modules)
