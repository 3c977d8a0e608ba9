"""What `DiffusionPipeline.from_pretrained(folder)` needs: the class that our index names for pruned components.

diffusers takes classes of its own library and of modules that are imported already; `import fxprune` imports this one,
and no code comes from the folder.  diffusers itself is imported when it asks.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.errors import SaveError
from fxprune.saving.header import Saved
from fxprune.saving.header_reading import read
from fxprune.saving.save import load
from fxprune.saving.stock import NAME


def __getattr__(name: str) -> Any:
    if name == NAME:
        return _pruned_model()
    if name == "ModelMixin":  # diffusers compares with it to find out how to load
        from diffusers import ModelMixin

        return ModelMixin
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


@functools.cache
def _pruned_model() -> Any:
    from diffusers import ModelMixin

    class PrunedModel(ModelMixin):  # type: ignore[misc]
        """Stands in an index for any pruned model of diffusers."""

        @classmethod
        def from_pretrained(cls, folder: str, *, torch_dtype: Any = None, dtype: Any = None, **_: Any) -> Any:
            """The model that `fxprune.save` wrote; offloading and other options of diffusers do not apply to it."""

            if not isinstance(read(Path(folder)), Saved):
                raise SaveError(f"{folder} holds a pipeline where a model should be")
            net = load(folder)
            wanted = torch_dtype or dtype
            return nn.Module.to(net, wanted) if isinstance(wanted, torch.dtype) else net

    return PrunedModel
