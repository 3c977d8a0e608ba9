"""What `DiffusionPipeline.from_pretrained(folder)` needs: the class that our index names for pruned components.

diffusers takes classes of its own library and of modules that are imported already; `import fxprune` imports this one,
and no code comes from the folder.  All else is imported when diffusers asks.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "ModelMixin":  # diffusers compares with it to find out how to load
        from diffusers import ModelMixin

        return ModelMixin
    if name == "PrunedModel" or _is_model(name):
        return importlib.import_module("fxprune.saving.component").pruned_model()
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


def _is_model(name: str) -> bool:
    """Whether diffusers has a model class of that name: what pipelines call components whose module is this one."""
    diffusers = sys.modules.get("diffusers")
    found = getattr(diffusers, name, None) if diffusers is not None and name[:1].isalpha() else None
    return isinstance(found, type) and issubclass(found, diffusers.ModelMixin)  # type: ignore[union-attr]
