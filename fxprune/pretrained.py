"""What `DiffusionPipeline.from_pretrained(folder)` needs: the class that our index names for pruned components.

diffusers takes classes of its own library and of modules that are imported already; `import fxprune` imports this one,
and no code comes from the folder.  All else is imported when diffusers asks.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "PrunedModel":
        return importlib.import_module("fxprune.saving.component").pruned_model()
    if name == "ModelMixin":  # diffusers compares with it to find out how to load
        from diffusers import ModelMixin

        return ModelMixin
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
