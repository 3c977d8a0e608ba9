"""Pipelines of the installed diffusers: what their folders name is found to be installed, and read."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.errors import SaveError
from fxprune.graph.modules import comes_from
from fxprune.saving.files import read_object, require_data
from fxprune.saving.header import DTYPES, is_identifier
from fxprune.saving.stock import INDEX, LIBRARIES, LIBRARY, NAME, SOURCE, class_of, diffusers_here, is_stock, read_as

PRUNED = [LIBRARY, NAME]  # what an index names for a pruned component


def is_pipeline(given: object) -> bool:
    """Whether it is a diffusers pipeline."""
    if not comes_from(given, "diffusers"):
        return False
    from diffusers import DiffusionPipeline

    return isinstance(given, DiffusionPipeline)


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """The components of a pipeline that are modules."""
    return {k: v for k, v in pipeline.components.items() if isinstance(v, nn.Module)}


def require_stock(pipeline: Any, pruned: Mapping[str, nn.Module]) -> None:
    """Check that a pipeline and its pruned components can be built again by name.

    Raises:
        SaveError: where one is not of diffusers' own classes.
    """
    if getattr(diffusers_here(), type(pipeline).__name__, None) is not type(pipeline):
        raise SaveError(f"{type(pipeline).__name__} is no pipeline of diffusers' own: save its components one by one")
    for name, module in pruned.items():
        if not is_stock(module):
            raise SaveError(f"{name} is a {type(module).__name__}, no model of diffusers' own: save it by itself")


def name_components(directory: Path, pipeline: Any, pruned: Mapping[str, nn.Module]) -> None:
    """Let a folder's `model_index.json` name the class that reads pruned components, and those that are absent."""
    index = read_object(directory / INDEX)
    expected, _ = pipeline._get_signature_keys(pipeline)
    index |= {name: [None, None] for name in sorted(expected) if getattr(pipeline, name, None) is None}
    index |= dict.fromkeys(pruned, PRUNED)
    index.pop(SOURCE, None)  # a path of this machine
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_index(directory: Path, pruned: Sequence[str] = ()) -> dict[str, Any]:
    """The `model_index.json` of a pipeline's folder, found to name installed classes only.

    Args:
        pruned: components that fxprune reads itself, whatever the index names for them.

    Raises:
        SaveError: where it is damaged, or names code that is not of diffusers or transformers.
    """
    index = read_object(directory / INDEX)
    pipelines = importlib.import_module("diffusers.pipelines") if diffusers_here() else None
    code = next((p for p in directory.rglob("*.py")), None)
    if code is not None:
        raise SaveError(f"{directory} holds Python code ({code.name}), which fxprune does not run; remove it")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or (name in pruned and value[:1] == [LIBRARY]):
            continue
        library = value[0] if len(value) == 2 else ""
        known = library in (None, *LIBRARIES) or (
            isinstance(library, str) and is_identifier(library) and hasattr(pipelines, library)
        )
        if not is_identifier(name) or not known:
            raise SaveError(
                f"{directory / INDEX} names a component {name!r:.60} from {library!r:.60}, which is not trusted"
            )
    return index


def pruned_in(directory: Path) -> tuple[str, ...]:
    """The components that a pipeline's own `save_pretrained` had fxprune write: those that its index says so of."""
    index = read_object(directory / INDEX) if (directory / INDEX).is_file() else {}
    return tuple(name for name, value in index.items() if isinstance(value, list) and value[:1] == [LIBRARY])


def read_pipeline(
    directory: Path, given: Mapping[str, Any], dtypes: Mapping[str, str], safe: bool | None = True
) -> Any:
    """A pipeline from its folder, with some components given and the others read in their dtypes.

    Args:
        safe: read safetensors only; None: older formats too, where there is nothing else.

    Raises:
        SaveError: where the folder is damaged.
    """
    cls = _pipeline_class(directory, read_index(directory, tuple(given)).get("_class_name"))
    pipeline = read_as(cls, directory, {**given, "local_files_only": True, "use_safetensors": safe})
    for name, module in modules_of(pipeline).items():
        if name in dtypes:
            nn.Module.to(module, DTYPES[dtypes[name]])  # diffusers reads float32, which holds every value exactly
    return pipeline


def _pipeline_class(directory: Path, name: Any) -> Any:
    diffusers = diffusers_here()
    found = getattr(diffusers, name, None) if isinstance(name, str) and is_identifier(name) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise SaveError(
            f"{directory / INDEX} names {name!r:.60}, which is no pipeline of diffusers {diffusers.__version__}"
        )
    return found


def read_folder(directory: Path) -> Any:
    """A diffusers pipeline or model as `save_pretrained` wrote it.

    Raises:
        SaveError: where the folder is neither, or damaged.
    """
    require_data(directory)
    if (directory / INDEX).is_file():
        return read_pipeline(directory, {}, {}, safe=None)
    return read_as(class_of(directory), directory, {"local_files_only": True})
