"""Whether a model is one that a library's maker makes, pruned or not."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.graph.blocks import inside
from fxprune.reporting.report import is_pruned, report
from fxprune.rewriting.skip import Skip
from fxprune.saving.restore import integers


def alike(made: nn.Module, model: nn.Module) -> bool:
    """Whether a model is one that was made so and pruned: the same modules with the same settings, no tensor larger."""
    here, there = dict(model.named_modules()), dict(made.named_modules())
    skipped = [p for p, m in here.items() if isinstance(m, Skip)]
    there = {p: m for p, m in there.items() if not any(inside(p, s) and p != s for s in skipped)}
    if list(here) != list(there):
        return False
    changed = {(c.path, c.name) for c in report(model).changes} if is_pruned(model) else set()
    for path, module in here.items():
        same = type(module) is type(there[path]) and _plain(module, path, changed) == _plain(there[path], path, changed)
        if path not in skipped and not same:
            return False
    sizes = dict(made.state_dict(keep_vars=True))
    return all(
        name in sizes and t.dim() == sizes[name].dim() and all(map(int.__le__, t.shape, sizes[name].shape))
        for name, t in model.state_dict(keep_vars=True).items()
    )


def _plain(module: nn.Module, path: str, changed: set[tuple[str, str]]) -> dict[str, Any]:
    """A module's settings that pruning has not changed."""
    held = {k: v for k, v in vars(module).items() if k != "training" and isinstance(v, (float, str, bool))}
    return {k: v for k, v in {**integers(module), **held}.items() if (path, k) not in changed}
