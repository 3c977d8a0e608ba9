"""What `DiffusionPipeline.from_pretrained(folder)` needs: the class that our index names for pruned components.

diffusers takes classes of its own library and of modules that are imported already; `import fxprune` imports this one,
and no code comes from the folder.  diffusers itself is imported when it asks.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch

from fxprune.errors import SaveError
from fxprune.saving.header import Saved, is_identifier
from fxprune.saving.header_reading import read
from fxprune.saving.save import load
from fxprune.saving.stock import NAME


def __getattr__(name: str) -> Any:
    if name == "ModelMixin":  # diffusers compares with it to find out how to load
        from diffusers import ModelMixin

        return ModelMixin
    if name == NAME or _is_model(name):
        return _pruned_model()
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


@functools.cache
def _pruned_model() -> Any:
    from diffusers import ModelMixin

    class PrunedModel(ModelMixin):  # type: ignore[misc]
        """Stands in an index for any pruned model of diffusers."""

        @classmethod
        def from_pretrained(
            cls, folder: str, *, torch_dtype: Any = None, dtype: Any = None, variant: str | None = None, **_: Any
        ) -> Any:
            """The model that `fxprune.save` wrote; offloading and other options of diffusers do not apply to it."""

            if not isinstance(read(Path(folder), variant), Saved):
                raise SaveError(f"{folder} holds a pipeline where a model should be")
            wanted = torch_dtype or dtype
            return load(folder, torch_dtype=wanted if isinstance(wanted, torch.dtype) else None, variant=variant)

    return PrunedModel


def _is_model(name: str) -> bool:
    """Whether diffusers has a model class of that name: what pipelines call components whose module is this one."""
    diffusers = sys.modules.get("diffusers")
    found = getattr(diffusers, name, None) if diffusers is not None and is_identifier(name) else None
    return isinstance(found, type) and issubclass(found, diffusers.ModelMixin)  # type: ignore[union-attr]
