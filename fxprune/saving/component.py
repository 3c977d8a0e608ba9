"""The class that stands in the index of a saved pipeline for its pruned components; see `fxprune.pretrained`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from fxprune.errors import SaveError
from fxprune.saving.header import Saved
from fxprune.saving.header_reading import read
from fxprune.saving.save import load


@functools.cache
def pruned_model() -> Any:
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
